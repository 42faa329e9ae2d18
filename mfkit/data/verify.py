"""verify: every digest and every member of a file or folder, held against what it says of itself."""

import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mfkit.artifacts.artifact import INDEX_NAME, file_digest, open_artifact
from mfkit.artifacts.safetensors_files import is_intact, read_header, read_tensors
from mfkit.autoencoders.files import AUTOENCODERS
from mfkit.data.codecs import IMAGE_SUFFIXES, array_member, decode_image, label_member, unreadable
from mfkit.data.images import ImageFolder, read_image
from mfkit.data.index import STREAM_END, STREAM_HEADER, FolderIndex, index_is_intact, read_index
from mfkit.data.npz import read_npz
from mfkit.data.shards import shard_urls
from mfkit.data.skip import SkipPolicy
from mfkit.data.tar import TAR_ERRORS, content, members, split_name
from mfkit.data.writer import check_finished
from mfkit.errors import InputError, decoding_errors, reason
from mfkit.formats import diffusers_folder
from mfkit.loading import load
from mfkit.models.files import KINDS

_SHOWN = 20


def verify(path: Path) -> dict[str, Any]:
    """What was checked, and what is damaged: ``checked`` and ``damaged``, numbers of things, and ``first``, texts."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    results = list(_checks(path))
    damaged = [wrong for wrong in results if wrong is not None]
    return {"path": str(path), "checked": len(results), "damaged": len(damaged), "first": damaged[:_SHOWN]}


Checks = Iterator[str | None]
"""For each thing that is checked, what is wrong with it."""


def _checks(path: Path) -> Checks:
    if path.is_dir():
        yield from _folder(path)
    elif path.suffix == ".npz":
        yield _npz(path)
    elif path.suffix == ".safetensors":
        yield from _tensors(path)
    else:
        yield from _tar(path)


def _folder(folder: Path) -> Checks:
    if unfinished := _error_of(partial(check_finished, folder)):
        yield unfinished
        return
    if diffusers_folder.class_name(folder):
        for file in sorted(folder.rglob("*.safetensors")):
            yield from _tensors(file)
        return
    shards = sorted(folder.glob("*.tar"))
    if (folder / INDEX_NAME).exists():
        kind, index = open_artifact(folder).kind, read_index(folder)
        yield None if index_is_intact(folder) else f"{folder / INDEX_NAME}: checksum mismatch"
        if index.files:
            yield from _image_files(folder, index.files)
            return
        if shards or kind != "images":
            yield from _indexed(folder, index)
            return
    if shards:
        for url in shard_urls(str(folder)):
            yield from _tar(Path(url))
        return
    images = ImageFolder(folder, None, SkipPolicy())
    yield from (_error_of(partial(images.__getitem__, index)) for index in range(len(images)))


def _image_files(folder: Path, digests: dict[str, str]) -> Checks:
    """Images that mfkit wrote: each decodes and is what it was, with none more or fewer."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    for name, file in files.items():
        if file.suffix[1:].lower() not in IMAGE_SUFFIXES or not file.is_file():
            continue
        if name not in digests:
            yield f"{file} is none of the folder's images"
            continue
        wrong = _error_of(partial(read_image, file, None))
        yield wrong or (None if file_digest(file) == digests[name] else f"{file}: checksum mismatch")
    yield from (f"{folder / name} is missing" for name in digests if name not in files)


def _indexed(folder: Path, index: FolderIndex) -> Checks:
    """Shards that mfkit wrote."""
    for shard in index.shards:
        file = folder / shard.name
        if not file.is_file():
            yield f"{file} is missing"
            continue
        yield None if file_digest(file) == shard.digest else f"{file}: checksum mismatch"
        yield from _tar(file)


def _tar(file: Path) -> Checks:
    """Members of any tar, each by what its suffix says."""
    names = set()
    try:
        with file.open("rb") as data:
            for member, tar in members(data, "r|*"):
                names.add(member.name)
                key, suffix = split_name(member.name)
                sample = {"__url__": str(file), "__key__": key, suffix: content(member, tar)}
                yield _error_of(partial(_member, sample, suffix))
    except TAR_ERRORS as error:
        yield f"{file} is damaged or truncated: {reason(error)}"
    if STREAM_HEADER in names and STREAM_END not in names:
        yield f"{file} ended early: its writer stopped"


def _member(sample: dict[str, Any], suffix: str) -> None:
    if suffix.endswith(".npy"):
        if not torch.isfinite(array_member(sample, suffix)).all():
            raise unreadable(sample, f"{suffix} holds numbers that are not finite")
    elif suffix in IMAGE_SUFFIXES:
        decode_image(sample[suffix], None, f"{sample['__key__']}.{suffix} in {sample['__url__']}")
    elif suffix == "cls":
        label_member(sample)


def _tensors(file: Path) -> Checks:
    """A safetensors file: its digest, its network, its numbers."""
    try:
        ours = any(name.startswith("mfkit.") for name in read_header(file).metadata)
        intact = is_intact(file)
    except InputError as error:
        yield str(error)
        return
    yield None if intact or (intact is None and not ours) else f"{file}: checksum mismatch"
    if intact is False:
        return
    for name, value in read_tensors(file).items():
        finite = not value.is_floating_point() or bool(torch.isfinite(value).all())
        yield None if finite else f"{file}: {name} holds numbers that are not finite"
    if ours:
        yield _error_of(lambda: _load(file))


def _load(file: Path) -> None:
    if open_artifact(file).kind in (*KINDS, *(one.kind for one in AUTOENCODERS)):
        load(file)


def _npz(file: Path) -> str | None:
    def check() -> None:
        read_npz(file, "arr_0", "arr_1", "mu", "sigma")
        try:
            with decoding_errors(file), zipfile.ZipFile(file) as archive:
                member = archive.testzip()
        except zipfile.BadZipFile as error:
            raise InputError(f"{file} is damaged: {error}") from error
        if member:
            raise InputError(f"{file}: {member} is damaged")

    return _error_of(check)


def _error_of(check: Callable[[], object]) -> str | None:
    """What a check says is wrong."""
    try:
        check()
    except InputError as error:
        return str(error)
    return None
