"""What a SHARDS argument opens as: tars on this machine by random access, anything else as a stream in order."""

import glob
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from webdataset.shardlists import expand_urls

from mfkit.artifacts.artifact import INDEX_NAME, Artifact, open_artifact
from mfkit.config.settings import DEFAULT_READING, Reading
from mfkit.data.dataset import Decode, IndexedTars
from mfkit.data.index import SampleIndex, index_tars, read_index, scan_tar
from mfkit.data.remote import cache_folder, check_url, copied_location, fetch_all, fetch_tar, is_copy, keep_index
from mfkit.data.skip import SkipPolicy
from mfkit.data.stream import StreamDataset, listed_artifact
from mfkit.data.writer import STREAM, check_finished
from mfkit.errors import InputError, UsageError, reason
from mfkit.runtime.distributed import processes

_COMPRESSED = {".gz", ".tgz", ".bz2", ".xz", ".zst"}


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
    if reading.cache and is_copy(path) and path.resolve().is_relative_to(reading.cache.resolve()):
        return _open_folder(path, kinds, skips, decode, arrays, fetches=True)
    if reading.cache:
        return _open_remote(location, kinds, skips, reading.cache, decode, arrays)
    check_finished(path)
    if location == STREAM and processes().num_processes > 1:
        raise UsageError("standard input has one reader: run one process, or give shards")
    if path.is_dir() and (path / INDEX_NAME).exists():
        return _open_folder(path, kinds, skips, decode, arrays)
    if path.is_file() and path.suffix == ".safetensors":
        raise InputError(f"{path} is a {open_artifact(path).kind} file; expected: a folder or shards of {kinds[0]}")
    urls = shard_urls(location)
    if location.startswith("hf:") and not all(url.endswith(".tar") for url in urls):
        raise UsageError(f"{location} names no tar; images of a dataset are hf://datasets/owner/name")
    if all(_is_plain_tar(url) for url in urls):
        return IndexedTars(*_scan(location, [Path(url) for url in urls], kinds, skips, urls), decode, skips, arrays)
    return StreamDataset(location, urls, decode, kinds, skips)


def _open_folder(
    path: Path, kinds: tuple[str, ...], skips: SkipPolicy, decode: Decode, arrays: Sequence[str], *,
    fetches: bool = False,
) -> IndexedTars:  # fmt: skip
    """:param fetches: it is a copy, whose tars come when they are read. Nobody's folder has mfkit fetch by itself."""
    artifact, index = open_artifact(path, kinds), read_index(path)
    if not index.shards:
        raise InputError(f"{path / INDEX_NAME} names no shards")
    fetch = None
    if fetches:
        digests = {path / shard.name: shard.digest for shard in index.shards}
        fetch = partial(fetch_tar, copied_location(path), digests)
    for shard in index.shards if not (skips.skips or fetch) else []:
        file = path / shard.name
        if not file.is_file() and is_copy(path):
            raise InputError(f"{file} is not fetched yet: pass --cache {path.parent}")
        if not file.is_file():
            raise InputError(f"{file}, named in {INDEX_NAME}, is missing")
        if file.stat().st_size < shard.offsets[-1]:
            raise InputError(f"{file} is truncated: {file.stat().st_size} bytes of {shard.offsets[-1]}")
    return IndexedTars(artifact, index.of_folder(path), decode, skips, arrays, fetch)


def _open_remote(
    location: str, kinds: tuple[str, ...], skips: SkipPolicy, cache: Path, decode: Decode, arrays: Sequence[str]
) -> IndexedTars:
    """The copy of a folder that mfkit wrote, whose tars are fetched when they are read; or copies of all tars.

    :raises UsageError: the location is neither. :raises InputError: it is damaged; then nothing of it is kept.
    """
    location = location.rstrip("/")
    try:
        urls = expand_urls(location)
    except ValueError as error:
        raise UsageError(f"--cache: {location}: {reason(error)}") from error
    for url in urls:
        check_url(url)
    copy, suffixes = cache_folder(cache, location), {Path(urlsplit(url).path).suffix for url in urls}
    if suffixes == {".tar"}:
        files = fetch_all(urls, copy)
        try:
            return IndexedTars(*_scan(location, files, kinds, skips, urls), decode, skips, arrays)
        except InputError:
            _discard(file for file in files if scan_tar(file).error)
            raise
    if suffixes & _COMPRESSED or len(urls) > 1:
        raise UsageError(f"--cache keeps .tar files that are not compressed, and folders that mfkit wrote: {location}")
    keep_index(location, INDEX_NAME, copy)
    try:
        return _open_folder(copy, kinds, skips, decode, arrays, fetches=True)
    except InputError as error:
        _discard([copy / INDEX_NAME])
        raise InputError(f"{location}: {error}") from error


def _discard(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


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
