"""Files appear whole: written under a temporary name, synced, renamed."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mfkit.errors import OutputError, UsageError

_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the operating system refuses in the block into the one-line error for ``path``."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def whole_file(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path``; it takes the final name when the block ends well and is removed otherwise.

    :param sync: wait until the bytes are on the disk; needless for one of many small files.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            partial.chmod(0o666 & ~_UMASK)  # safetensors makes its files unreadable for others
            if sync:
                with partial.open("rb+") as file:
                    os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text)


def claim(path: Path, *, overwrite: bool, suffix: str = "", inputs: Iterable[Path] = ()) -> None:
    """Refuses a file as output that exists, unless ``overwrite``; the old one stays until the new one is whole.

    :param suffix: what its name must end in. :param inputs: what it must not replace.
    """
    if path.suffix != suffix and suffix:
        raise UsageError(f"{path}: the output's name must end in {suffix}")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; give --overwrite to replace it, or another name with -o")
    if path.resolve() in {item.resolve() for item in inputs}:
        raise OutputError(f"{path} is an input of this command; give another name with -o")
