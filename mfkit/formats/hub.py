"""Weights that others wrote: from a local file or the Hugging Face hub, read as tensors and never unpickled."""

import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from mfkit.artifacts.pipeline_folder import INDEX
from mfkit.artifacts.safetensors_files import read_tensors
from mfkit.errors import DECODING_ERRORS, InputError, UsageError, is_out_of_memory
from mfkit.formats import diffusers_folder

HUB = "hf://"
WEIGHT_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")
_PARTS = [INDEX, *(f"{part}/{name}" for part in ("transformer", "decoder") for name in diffusers_folder.FILES)]
"""Of a pipeline's folder: none of its code, which mfkit does not run."""
_REFERENCE = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<path>.+))?")


def resolve(source: str, *, folder: bool = False, beside: str = "") -> Path:
    """The local file of a source: a path, or ``hf://owner/repo[@revision]/path``, fetched into the hub's cache.

    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured.

    :param folder: fetch the folder of a model that diffusers saved instead; its path may be empty.
    :param beside: name of another file of its folder, fetched too where there is one.
    """
    if not source.startswith(HUB):
        path = Path(source)
        if not path.exists():
            raise InputError(f"{path} does not exist")
        return path
    reference = _REFERENCE.fullmatch(source.removeprefix(HUB))
    if not reference or not (folder or reference["path"]):
        raise UsageError(f"{source}: give {HUB}owner/repo/path/in/repo")
    return _download(source, reference["repo"], reference["revision"], reference["path"] or "", folder, beside)


def local_copy(name: str, *, beside: str = "") -> str:
    """The path of a file on the hub, see :func:`resolve`; any other name as it is."""
    return str(resolve(name, beside=beside)) if name.startswith(HUB) else name


def _download(source: str, repo: str, revision: str | None, path: str, folder: bool, beside: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # each attempt of several would be a warning; the outcome is reported below
    with hub_errors(f"{source} cannot be downloaded"):
        if not folder:
            found = Path(hf_hub_download(repo, path, revision=revision))
            with suppress(EntryNotFoundError):
                if beside:
                    hf_hub_download(repo, str(PurePosixPath(path).with_name(beside)), revision=revision)
            return found
        patterns = [f"{path}/{name}".lstrip("/") for name in (*diffusers_folder.FILES, *_PARTS)]
        found = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns)) / path
    if not found.is_dir():
        raise InputError(f"{source} is not a folder of that repository")
    return found


def upload(folder: Path, repo: str, *, private: bool) -> str:
    """Writes a folder to a repository of the hub, which is made where it is missing.

    HF_TOKEN, or the token that ``hf auth login`` keeps, and HF_ENDPOINT are honoured.

    :param private: who makes the repository alone may read it. :returns: its address.
    :raises InputError: the hub refuses it, or is out of reach.
    """
    from huggingface_hub import HfApi

    with hub_errors(f"{repo} cannot be written"):
        api = HfApi()
        address = api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise InputError(f"{repo} is there already, for everyone to read; make it private first")
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="mfkit export")
    return str(address)


@contextmanager
def hub_errors(failed: str) -> Iterator[None]:
    """Turns what the hub's client raises into the one-line error: its own kinds, those of the library below it."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except (OSError, ValueError, HFValidationError) as error:
        raise InputError(f"{failed}: {_reason(error)}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "requests"):
            raise
        raise InputError(f"{failed}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def read_weights_file(path: Path) -> Any:
    """What a ``.pt`` (or ``.pth``, ``.bin``) or ``.safetensors`` file holds, on the CPU.

    A file that asks for more than tensors and plain containers is refused; nothing in it is run.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected: a file of weights")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f" (it asks for {asked[1]})" if asked else ""
        raise InputError(f"{path} is not a file of tensors alone{what}; nothing of it is run") from error
    except (OSError, zipfile.BadZipFile, *DECODING_ERRORS) as error:
        if is_out_of_memory(error):
            raise
        # torch's own message recommends to trust the file, or names an internal of its format.
        raise InputError(f"{path} is not a file of weights that torch.save wrote, or it is truncated") from error
