"""What a SHARDS argument opens as: tars on this machine by random access, anything else as a stream in order."""

import glob
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from webdataset.shardlists import expand_urls

from mfkit.artifacts.artifact import INDEX_NAME, Artifact, open_artifact
from mfkit.config.settings import DEFAULT_READING, Reading
from mfkit.data.dataset import Decode, IndexedTars
from mfkit.data.index import FolderIndex, SampleIndex, index_tars, read_index, scan_tar
from mfkit.data.remote import cache_folder, fetch, fetch_all, fetch_tar
from mfkit.data.skip import SkipPolicy
from mfkit.data.stream import StreamDataset, listed_artifact
from mfkit.data.writer import STREAM, check_finished
from mfkit.errors import InputError, UsageError
from mfkit.runtime.distributed import processes


def open_shards(
    location: str, kinds: tuple[str, ...], decode: Decode, reading: Reading = DEFAULT_READING, *,
    arrays: Sequence[str] = (),
) -> IndexedTars | StreamDataset:  # fmt: skip
    """A folder that mfkit wrote by its index; other tars on this machine by a scan of their headers; else a stream.

    Remote ones are as those on this machine where they are kept on it.

    :param kinds: those that the samples may be of; shards that do not say it are taken for the first.
    :param arrays: what samples hold besides the label, where that is arrays alone: they are read in place.
    """
    skips, path = SkipPolicy(reading.on_error), Path(location)
    if reading.cache:
        artifact, index, fetch = _open_remote(location, kinds, skips, reading.cache)
        return IndexedTars(artifact, index, decode, skips, arrays, fetch)
    check_finished(path)
    if location == STREAM and processes().num_processes > 1:
        raise UsageError("standard input has one reader: run one process, or give shards")
    if path.is_dir() and (path / INDEX_NAME).exists():
        return IndexedTars(*_open_folder(path, kinds, skips), decode, skips, arrays)
    if path.is_file() and path.suffix == ".safetensors":
        raise InputError(f"{path} is a {open_artifact(path).kind} file; expected: a folder or shards of {kinds[0]}")
    urls = shard_urls(location)
    if all(_is_plain_tar(url) for url in urls):
        return IndexedTars(*_scan(location, [Path(url) for url in urls], kinds, skips, urls), decode, skips, arrays)
    return StreamDataset(location, urls, decode, kinds, skips)


def _open_folder(path: Path, kinds: tuple[str, ...], skips: SkipPolicy) -> tuple[Artifact, SampleIndex]:
    artifact, index = open_artifact(path, kinds), _index_of(path)
    for shard in index.shards if not skips.skips else []:
        file = path / shard.name
        if not file.is_file():
            raise InputError(f"{file}, named in {INDEX_NAME}, is missing")
        if file.stat().st_size < shard.offsets[-1]:
            raise InputError(f"{file} is truncated: {file.stat().st_size} bytes of {shard.offsets[-1]}")
    return artifact, index.of_folder(path)


def _open_remote(
    location: str, kinds: tuple[str, ...], skips: SkipPolicy, cache: Path
) -> tuple[Artifact, SampleIndex, Callable[[Path], None] | None]:
    """The copy of a folder that mfkit wrote, whose tars are fetched when they are read; or copies of all tars."""
    copy = cache_folder(cache, location)
    if location.endswith(".tar"):
        urls = expand_urls(location)
        return *_scan(location, fetch_all(urls, copy), kinds, skips, urls), None
    fetch(f"{location.rstrip('/')}/{INDEX_NAME}", copy / INDEX_NAME)
    artifact, index = open_artifact(copy, kinds), _index_of(copy)
    digests = {copy / shard.name: shard.digest for shard in index.shards}
    return artifact, index.of_folder(copy), partial(fetch_tar, location, digests)


def _index_of(folder: Path) -> FolderIndex:
    index = read_index(folder)
    if not index.shards:
        raise InputError(f"{folder / INDEX_NAME} names no shards")
    return index


def _scan(
    location: str, files: list[Path], kinds: tuple[str, ...], skips: SkipPolicy, names: list[str]
) -> tuple[Artifact, SampleIndex]:
    """:param names: of the files, whatever the places of their copies."""
    tars = []
    for file in files:
        scanned = scan_tar(file)
        skips.add_shard(str(file), len(scanned.samples), scanned.error)
        tars.append(scanned)
    index = index_tars(files, tars)
    if not len(index):
        raise InputError(f"{location} holds no samples")
    skips.check(len(index))
    return listed_artifact(location, names, kinds, tars[0].description), index


def shard_urls(location: str) -> list[str]:
    """The shards that a folder, glob, brace range, ``-`` or ``pipe:`` URL names, sorted within a folder or glob."""
    path = Path(location)
    if location == STREAM or location.startswith("pipe:"):
        return [location]
    if path.is_dir():
        urls = sorted(str(shard) for shard in path.glob("*.tar"))
    elif any(mark in location for mark in "*?["):
        urls = sorted(file for pattern in expand_urls(location) for file in glob.glob(pattern))
    else:
        urls = expand_urls(location)
    missing = [url for url in urls if "://" not in url and not Path(url).is_file()]
    if missing or not urls:
        raise InputError(f"{missing[0]} does not exist" if missing else f"{location} holds no .tar shards")
    return urls


def _is_plain_tar(url: str) -> bool:
    """Whether it is a file on this machine that begins as a tar does, not as a compressed one."""
    path = Path(url)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(262)[257:] == b"ustar"
