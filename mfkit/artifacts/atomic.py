"""Files appear whole: written under a temporary name, synced, renamed; and each output has one writer."""

import fcntl
import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mfkit.errors import OutputError, UsageError
from mfkit.runtime.distributed import processes

logger = logging.getLogger(__name__)

_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns what the operating system refuses in the block into the one-line error for ``path``."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def atomic_write(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path``; it takes the final name when the block ends well and is removed otherwise.

    What a process that was killed left under the temporary name is replaced by the next one that writes ``path``.

    :param sync: wait until the bytes and the name are on the disk; False leaves that to :func:`sync_files`.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            partial.chmod(0o666 & ~_UMASK)
            if sync:
                _sync(partial)
            partial.replace(path)
            if sync:
                _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_files(files: Iterable[Path]) -> None:
    """Waits until these files, written without it, are on the disk under their names."""
    folders = set()
    for file in files:
        with write_errors(file):
            _sync(file)
        folders.add(file.parent)
    for folder in folders:
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text)


@contextmanager
def exclusive_output(path: Path, *, overwrite: bool, suffix: str = "", inputs: Iterable[Path] = ()) -> Iterator[None]:
    """Makes a file the output of this command alone, while the block lasts; the main process sees to it.

    A file that exists is refused unless ``overwrite``; the old one stays until the new one is whole.

    :param suffix: what its name must end in. :param inputs: what it must not replace.
    """
    if not processes().is_main_process:
        yield
        return
    if path.suffix != suffix and suffix:
        raise UsageError(f"{path}: the output's name must end in {suffix}")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file")
    with writer_lock(path):
        check_replaceable(path, inputs, overwrite=overwrite)
        yield


def check_replaceable(path: Path, inputs: Iterable[Path] = (), *, overwrite: bool) -> None:
    """:raises OutputError: it exists, and ``overwrite`` was not asked for; or it is one of the inputs."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; pass --overwrite to replace it, or another name")
    if path.resolve() in {item.resolve() for item in inputs}:
        raise OutputError(f"{path} is an input of this command; pass another name")


def output_is_complete() -> None:
    """From now on the command ends by itself: a signal to stop would report as interrupted what is complete."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def writer_lock(path: Path) -> Iterator[None]:
    """Refuses an output that another command is writing. The lock is the system's: it ends with its process.

    :raises OutputError: another one is writing it.
    """
    target = path.resolve()  # whatever links lead there
    lock = target.parent / f".{target.name}.lock"
    with write_errors(path):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(lock, path)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(lock: Path, path: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(f"another command is writing {path}; wait, or pass another name with -o") from error
        except OSError:
            logger.warning("%s is on a file system without locks: run one command at a time that writes it", path)
        try:
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        except FileNotFoundError:
            pass  # its last holder has just removed it
        os.close(descriptor)
