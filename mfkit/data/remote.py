"""Remote tars, kept on a disk of this machine: each is fetched once, and goes on where an interrupted one stopped."""

import fcntl
import hashlib
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote, urlsplit

from mfkit.artifacts.artifact import file_digest
from mfkit.artifacts.atomic import sync_files, write_errors, write_text
from mfkit.errors import InputError, MfkitError, UsageError, reason
from mfkit.runtime.distributed import processes

logger = logging.getLogger(__name__)

_ATTEMPTS, _WAIT, _TIMEOUT = 5, 0.5, 60.0
"""Of a transfer that brings nothing; seconds before the next, doubled each time; seconds of silence that end one."""
_CHUNK = 1 << 20
_LOCATION = ".location"
"""In the copy of a folder: where the folder is."""


class FetchError(MfkitError):
    """A transfer that failed. It is no fault of a sample, so none is skipped for it."""

    exit_code = InputError.exit_code


def is_copy(folder: Path) -> bool:
    """Whether tars of this folder are fetched when they are read."""
    return (folder / _LOCATION).is_file()


def copied_location(folder: Path) -> str:
    return (folder / _LOCATION).read_text().strip()


def cache_folder(cache: Path, location: str) -> Path:
    """Where what a location names is kept."""
    return cache / hashlib.sha256(location.encode()).hexdigest()[:16]


def check_url(url: str) -> None:
    """:raises UsageError: it is nothing that can be kept."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        known = False
    if not known or not url.isascii():
        raise UsageError(f"--cache keeps what http:// or https:// locations name; {url} is none")


def keep_index(location: str, name: str, folder: Path) -> None:
    """Begins the copy of a folder that mfkit wrote, by its index."""
    fetch(f"{location}/{name}", folder / name)
    with _alone(folder / _LOCATION):
        if not is_copy(folder):
            write_text(folder / _LOCATION, location + "\n")


def fetch_tar(location: str, digests: Mapping[Path, str], path: Path) -> None:
    """The copy of a tar of a folder that mfkit wrote.

    :param digests: what copies must have, by their paths. :raises FetchError: it cannot be fetched, or is another.
    """
    fetch(f"{location}/{quote(path.name)}", path, digest=digests[path])


def fetch_all(urls: Sequence[str], folder: Path) -> list[Path]:
    """Copies of these files. Processes begin with different ones, and wait for those that others fetch."""
    files = [folder / f"{number:05d}.tar" for number in range(len(urls))]
    world = processes()
    begin = len(urls) * world.process_index // world.num_processes
    for number in [*range(begin, len(urls)), *range(begin)]:
        fetch(urls[number], files[number])
    return files


def fetch(url: str, path: Path, *, digest: str | None = None) -> None:
    """Makes ``path`` the copy of a file, whole and of the size that the server says; once there, it stays.

    Other processes and threads that want it wait for the first. What an interrupted one has fetched is kept, and gone
    on with as long as the server says that the file is still the same.

    :param digest: what the copy must have. :raises FetchError: it cannot be fetched, or is another.
    """
    if path.exists():
        return
    with _alone(path) as partial:
        if path.exists():
            return
        logger.info("fetching %s", url)
        _transfer(url, partial)
        if digest is not None and file_digest(partial) != digest:
            partial.unlink()
            raise FetchError(
                f"{url} is not what its index says: its digest differs; if it was written anew, delete {path.parent}"
            )
        with write_errors(path):
            sync_files([partial])
            partial.replace(path)


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """The name under which ``path`` is fetched, for one thread of all processes."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            logger.warning("%s is on a file system without locks: one process at a time may fetch into it", path.parent)
        yield path.with_name(f".{path.name}.partial")
    finally:
        os.close(lock)


def _transfer(url: str, partial: Path) -> None:
    failures, most = 0, _size(partial)
    while True:
        try:
            _go_on(url, partial)
            _version_file(partial).unlink(missing_ok=True)
            return
        except (HTTPException, OSError, ValueError) as error:
            if isinstance(error, ValueError) or (
                isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (416, 429)
            ):
                raise FetchError(f"{url} cannot be fetched: {reason(error)}") from error
            failures = 1 if _size(partial) > most else failures + 1
            most = max(most, _size(partial))
            if failures >= _ATTEMPTS:
                raise FetchError(f"{url} cannot be fetched: {reason(error)}") from error
            logger.warning("%s: %s; trying again", url, reason(error))
            time.sleep(_WAIT * 2 ** (failures - 1))


def _go_on(url: str, partial: Path) -> None:
    """Fetches what is missing of the version that was begun with; all, where that is not known or gone."""
    begun, version = _size(partial), _version_file(partial)
    headers = {}
    if begun and version.exists():
        headers = {"Range": f"bytes={begun}-", "If-Range": version.read_text()}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            if error.headers.get("Content-Range") == f"bytes */{begun}":
                return  # nothing is missing
            version.unlink(missing_ok=True)  # so that the next attempt begins anew
        raise
    with answer:
        place = answer.headers.get("Content-Range", "")
        if answer.status == 206 and not place.startswith(f"bytes {begun}-"):
            version.unlink(missing_ok=True)
            raise ConnectionError(f"another part came: {place or 'the server does not say which'}")
        goes_on = answer.status == 206
        length, came = answer.headers.get("Content-Length"), 0
        with write_errors(partial):
            if not goes_on:
                version.unlink(missing_ok=True)
                if (mark := _version(answer.headers)) is not None:
                    version.write_text(mark)
            file = partial.open("ab" if goes_on else "wb")
        with file:
            while chunk := answer.read(_CHUNK):
                with write_errors(partial):
                    file.write(chunk)
                came += len(chunk)
    if length is not None and came != int(length):
        raise ConnectionError(f"{came} of {length} bytes came")


def _version(headers: Message) -> str | None:
    """By which a server takes up a transfer again; a weak ETag does not say that the bytes are the same."""
    tag = headers.get("ETag") or headers.get("Last-Modified")
    return tag if tag and not tag.startswith("W/") else None


def _version_file(partial: Path) -> Path:
    """Says by which ETag or date the server knows what was begun with."""
    return partial.with_name(f"{partial.name}.version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
