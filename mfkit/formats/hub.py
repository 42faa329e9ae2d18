"""Weights that others wrote: from a local file or the Hugging Face hub, read as tensors and never unpickled."""

import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from mfkit.artifacts.safetensors_files import read_tensors
from mfkit.errors import MALFORMED, InputError, UsageError
from mfkit.formats import diffusers_folder

HUB = "hf://"
FILES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")
"""Endings of files of weights."""
_LARGEST_TUPLE = 10_000
"""Entries of a tuple and of those in it; a state dict's have a dozen."""
_PICKLES = 5
"""At the beginning of a file of the older format; the numbers follow."""
_PLACE = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<path>.+))?")


def local(source: str, *, folder: bool = False) -> Path:
    """The local file of a source: a path, or ``hf://owner/repo[@revision]/path``, fetched into the hub's cache.

    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured.

    :param folder: fetch the folder of a model that diffusers saved instead; its path may be empty.
    """
    if not source.startswith(HUB):
        path = Path(source)
        if not path.exists():
            raise InputError(f"{path} does not exist")
        return path
    place = _PLACE.fullmatch(source.removeprefix(HUB))
    if not place or not (folder or place["path"]):
        raise UsageError(f"{source}: give {HUB}owner/repo/path/in/repo")
    return _fetched(source, place["repo"], place["revision"], place["path"] or "", folder)


def _fetched(source: str, repo: str, revision: str | None, path: str, folder: bool) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # each attempt of several would be a warning; what comes of them is said below
    try:
        if not folder:
            return Path(hf_hub_download(repo, path, revision=revision))
        patterns = [f"{path}/{name}".lstrip("/") for name in diffusers_folder.FILES]
        found = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns)) / path
    except (OSError, ValueError, HFValidationError) as error:  # the hub's errors are of these kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{source} cannot be had: {reason}") from error
    if not found.is_dir():
        raise InputError(f"{source} is no folder of that repository")
    return found


def read_document(path: Path) -> Any:
    """What a ``.pt`` (or ``.pth``, ``.bin``) or ``.safetensors`` file holds, on the CPU.

    A file that asks for more than tensors and plain containers is refused; nothing in it is run.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected: a file of weights")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        _check_tuples(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f" (it asks for {asked[1]})" if asked else ""
        raise InputError(f"{path} is no file of tensors alone{what}; nothing of it is run") from error
    except (OSError, zipfile.BadZipFile, *MALFORMED) as error:
        # torch's own words recommend to trust the file, or name an internal of its format.
        raise InputError(f"{path} is no file of weights that torch.save wrote, or it is truncated") from error


def _check_tuples(path: Path) -> None:
    """Refuses tuples that are small by sharing, and take forever where one is a key and all of it is hashed.

    :raises ValueError: there is one.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    with archive.open(name) as file:
                        _check_pickle(file)
    else:
        with path.open("rb") as file:
            for _ in range(_PICKLES):
                _check_pickle(file)


def _check_pickle(file: IO[bytes]) -> None:
    """Follows the stack of the unpickler, with the size of each object written out; of what is no tuple it is 1."""
    stack: list[int] = []
    memo: dict[Any, int] = {}
    for code, argument, _ in pickletools.genops(file):
        if "PUT" in code.name or code.name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif code.name == "DUP":
            stack.append(stack[-1])
        elif code.name == "MARK":
            stack.append(0)
        else:
            taken = []
            if pickletools.markobject in code.stack_before:
                while size := stack.pop():
                    taken.append(size)
            fixed = [item for item in code.stack_before if item not in (pickletools.markobject, pickletools.stackslice)]
            taken += [stack.pop() for _ in fixed]
            size = 1 + sum(taken) if "TUPLE" in code.name else 1
            if size > _LARGEST_TUPLE:
                raise ValueError(f"a tuple of {size} entries")
            stack += [size for _ in code.stack_after]
