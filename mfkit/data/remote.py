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
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from mfkit.artifacts.artifact import file_digest
from mfkit.artifacts.atomic import write_errors
from mfkit.errors import InputError, UsageError, reason
from mfkit.runtime.distributed import processes

logger = logging.getLogger(__name__)

_ATTEMPTS, _WAIT, _TIMEOUT = 5, 1.0, 60.0
"""Of a transfer that brings nothing; seconds before the next, doubled each time; seconds of silence that end one."""
_CHUNK = 1 << 20


def cache_folder(cache: Path, location: str) -> Path:
    """Where what a location names is kept.

    :raises UsageError: the location cannot be kept.
    """
    if urlsplit(location).scheme not in ("http", "https"):
        raise UsageError(f"--cache keeps what http:// or https:// locations name; {location} is none")
    return cache / hashlib.sha256(location.encode()).hexdigest()[:16]


def fetch_tar(location: str, digests: Mapping[Path, str], path: Path) -> None:
    """The copy of a tar of a folder that mfkit wrote.

    :param digests: what copies must have, by their paths. :raises InputError: it cannot be fetched, or is another.
    """
    if not path.exists():
        fetch(f"{location.rstrip('/')}/{path.name}", path, digest=digests[path])


def fetch_all(urls: Sequence[str], folder: Path) -> list[Path]:
    """Copies of these files. Processes that share a disk fetch different ones first, and wait for those of others."""
    files = [folder / f"{number:05d}.tar" for number in range(len(urls))]
    world = processes()
    begin = len(urls) * world.local_process_index // world.num_processes
    for number in [*range(begin, len(urls)), *range(begin)]:
        if not files[number].exists():
            fetch(urls[number], files[number])
    return files


def fetch(url: str, path: Path, *, digest: str | None = None) -> None:
    """Makes ``path`` the copy of a file, whole and of the size that the server says.

    Other processes and threads that want it wait for the first. What an interrupted one has fetched is kept.

    :param digest: what the copy must have.
    """
    with _alone(path) as partial:
        if path.exists():
            return
        logger.info("fetching %s", url)
        _transfer(url, partial)
        if digest and file_digest(partial) != digest:
            partial.unlink()
            raise InputError(f"{url} is not what its index says: its digest differs")
        with write_errors(path):
            partial.replace(path)


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """The name under which ``path`` is fetched, for one thread of all processes."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path.with_name(f".{path.name}.partial")
    finally:
        os.close(lock)


def _transfer(url: str, partial: Path) -> None:
    failures, wait = 0, _WAIT
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _go_on(url, partial, before)
            return
        except (HTTPException, OSError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429:
                raise InputError(f"{url} cannot be fetched: {error.code} {error.reason}") from error
            came = partial.exists() and partial.stat().st_size > before
            failures, wait = (1, _WAIT) if came else (failures + 1, 2 * wait)
            if failures >= _ATTEMPTS:
                raise InputError(f"{url} cannot be fetched: {reason(error)}") from error
            logger.info("%s: %s; trying again", url, reason(error))
            time.sleep(wait)


def _go_on(url: str, partial: Path, begin: int) -> None:
    """Fetches what is missing."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={begin}-"} if begin else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if begin and error.code == 416:  # nothing is missing, or it has become shorter
            partial.unlink()
            raise ConnectionError("what was fetched before is no part of it") from error
        raise
    with answer:
        begin = begin if answer.status == 206 else 0
        length, came = answer.headers.get("Content-Length"), 0
        with partial.open("ab" if begin else "wb") as file:
            while chunk := answer.read(_CHUNK):
                with write_errors(partial):
                    file.write(chunk)
                came += len(chunk)
    if length is not None and came != int(length):
        raise ConnectionError(f"{came} of {length} bytes came")
