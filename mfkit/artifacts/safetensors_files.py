"""Safetensors files: written the same each time, with a digest of their own; their header; their tensors.

Headers are read without torch, so that ``mfkit inspect`` answers at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from mfkit.errors import InputError, reason

if TYPE_CHECKING:
    from torch import Tensor

_METADATA, _DIGEST = "__metadata__", "mfkit.digest"
"""The header's entry of texts, and the one among them that holds the digest of the file."""
_PLACEHOLDER = "sha256:" + 64 * "0"
"""Stands where the digest will, while it is computed."""
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""The format's names of torch's number formats."""


def write_tensors(
    path: Path | None,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    gather: Callable[[Tensor], Tensor] = lambda value: value,
) -> None:
    """Writes tensors and texts: the same bytes for the same content. One tensor at a time is on the host.

    The library's own writer leaves the order of the texts to chance, and a temporary file of its own where its process
    is killed.

    :param path: None in a process that does not write, but takes part in ``gather``.
    :param gather: makes a tensor whole that is split among processes; called in all of them in the same order.
    """
    import torch

    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that each is aligned
    if path is None:
        for name in names:
            gather(tensors[name])
        return
    header: dict[str, Any] = {_METADATA: {_DIGEST: _PLACEHOLDER, **metadata}}
    begin = 0
    for name in names:
        value = tensors[name]
        end = begin + value.numel() * value.element_size()
        header[name] = {
            "dtype": _DTYPES[str(value.dtype).removeprefix("torch.")],
            "shape": list(value.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256(text)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            value = gather(tensors[name]).detach().cpu().contiguous()
            data = value.reshape(-1).view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
        file.seek(8)
        file.write(text.replace(_PLACEHOLDER.encode(), f"sha256:{digest.hexdigest()}".encode(), 1))


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file."""

    dtypes: dict[str, str]
    """By the tensors' names, as the format has them: ``F32``."""
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file, which the library has found to be that of a whole file.

    :raises InputError: it is none, or truncated.
    """
    try:
        with safe_open(path, framework="np") as file:
            names = file.keys()
            entries = {name: file.get_slice(name) for name in names}
            dtypes = {name: entry.get_dtype() for name, entry in entries.items()}
            shapes = {name: tuple(entry.get_shape()) for name, entry in entries.items()}
            return Header(dtypes, shapes, file.metadata() or {})
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file, or it is truncated: {reason(error)}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from error


def is_intact(path: Path) -> bool | None:
    """Whether a file's bytes are those that were written; None for one that does not say its digest.

    :raises InputError: it is no safetensors file, or truncated.
    """
    stored = read_header(path).metadata.get(_DIGEST)
    if stored is None:
        return None
    with path.open("rb") as file:
        text = file.read(int.from_bytes(file.read(8), "little"))
        digest = hashlib.sha256(text.replace(stored.encode(errors="replace"), _PLACEHOLDER.encode(), 1))
        while data := file.read(1 << 20):
            digest.update(data)
    return stored == f"sha256:{digest.hexdigest()}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
