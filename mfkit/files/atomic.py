"""Files appear whole: written under a temporary name, synced, renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mfkit.errors import OutputError

_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; it takes the final name when the block ends well and is removed otherwise."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.chmod(0o666 & ~_UMASK)  # safetensors makes its files unreadable for others
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text)


def claim(path: Path, *, overwrite: bool) -> None:
    """Refuses an output that exists, unless ``overwrite``, which removes it; an empty folder may stand."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise OutputError(f"{path} exists; give --overwrite to replace it, or another name with -o")
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
