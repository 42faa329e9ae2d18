"""What can go wrong, as the user sees it: one line that names the file, the key and the way out."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOMEM
from tokenize import TokenError


class MfkitError(Exception):
    """An error that the user can mend: a message and an exit code of its own."""

    exit_code = 1
    in_all_processes = False
    """Raised in all processes alike, so that one of them prints it."""


class UsageError(MfkitError):
    """Options that contradict each other or the inputs."""

    exit_code = 2


class InputError(MfkitError):
    """A file that is missing, damaged, of another kind, or does not fit the others."""

    exit_code = 3


class OutputError(MfkitError):
    """An output that cannot be written."""

    exit_code = 4


class DivergedError(MfkitError):
    """A loss or gradient that is no longer finite."""

    exit_code = 5
    in_all_processes = True


class OutOfMemoryError(MfkitError):
    """The device or the host has no memory left."""

    exit_code = 6


class StoppedError(MfkitError):
    """A signal asked to stop, and the work was saved."""

    in_all_processes = True

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


DECODING_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, LookupError, RuntimeError, StopIteration,
    SyntaxError, TokenError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
"""What libraries raise over content that is not what it claims to be; an OSError besides, where they also open it."""


def reason(error: BaseException) -> str:
    """The message of a library's error, in one line."""
    first = error.args[0] if error.args else None
    message = first if isinstance(first, str) else str(error)  # some carry more than their message
    return " ".join(message.split())[:200] or type(error).__name__


@contextmanager
def decoding_errors(source: object) -> Iterator[None]:
    """Turns what a library raises in the block, over the contents of a file, into one line that names the file.

    The block is the library's call and nothing else: an error of mfkit's own code must not be reported as a damaged
    file. Out of memory is not the file's fault either, and passes through.
    """
    try:
        yield
    except DECODING_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{source} cannot be read: {reason(error)}") from error


_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
"""In the messages of devices and of the host."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is the device's or the host's memory that was too small."""
    if isinstance(error, OSError):
        return error.errno == ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)
    )
