"""Safetensors files: written the same each time, with a digest of their own; their header; their tensors."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mfkit.artifacts.json_files import fields, parse_json
from mfkit.errors import InputError

_TEXTS, _DIGEST = "__metadata__", "mfkit.digest"
"""The header's entry of texts, and the one among them that holds the digest of the file."""
_UNKNOWN = "sha256:" + 64 * "0"
"""Stands where the digest will, while it is taken."""
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_LONGEST_HEADER = 100_000_000
"""Bytes; the library's own limit."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Writes tensors and texts: the same bytes for the same content.

    The library's own writer leaves the order of the texts to chance, and a temporary file of its own where its process
    is killed.

    :param tensors: on the CPU, contiguous.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that each is aligned
    header: dict[str, Any] = {_TEXTS: {_DIGEST: _UNKNOWN, **texts}}
    place = 0
    for name in names:
        value = tensors[name]
        end = place + value.numel() * value.element_size()
        header[name] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256(text)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            data = tensors[name].reshape(-1).view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
        file.seek(8)
        file.write(text.replace(_UNKNOWN.encode(), f"sha256:{digest.hexdigest()}".encode(), 1))


def intact(path: Path) -> bool | None:
    """Whether a file's bytes are those that were written; None for one that does not say its digest.

    :raises InputError: it is no safetensors file, or truncated.
    """
    told = safetensors_header(path).get(_TEXTS, {}).get(_DIGEST)
    if told is None:
        return None
    with path.open("rb") as file:
        text = file.read(int.from_bytes(file.read(8), "little"))
        digest = hashlib.sha256(text.replace(str(told).encode(errors="replace"), _UNKNOWN.encode(), 1))
        while data := file.read(1 << 20):
            digest.update(data)
    return told == f"sha256:{digest.hexdigest()}"


def safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: tensor names with dtype, shape and offsets, and ``__metadata__``."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            raise InputError(f"{path} is not a safetensors file, or it is truncated")
        header = parse_json(file.read(length), f"the header of {path}")
    end = 0
    for name, entry in fields(header, path).items():
        if name == _TEXTS:
            valid = isinstance(entry, dict) and all(isinstance(value, str) for value in entry.values())
        else:
            valid = _is_entry(entry)
            end = max(end, entry["data_offsets"][1]) if valid else end
        if not valid:
            raise InputError(f"{path} is not a safetensors file: its header says nothing of {name}")
    if size != 8 + length + end:
        raise InputError(f"{path} is truncated: {size} bytes where its header says {8 + length + end}")
    return header


def _is_entry(entry: Any) -> bool:
    """Whether it says dtype, shape and place of a tensor; the library sees to it that they fit."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and all(
            isinstance(numbers := entry.get(name), list)
            and all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
            for name in ("shape", "data_offsets")
        )
        and len(entry["data_offsets"]) == 2
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
