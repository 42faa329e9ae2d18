"""What can go wrong, as the user sees it: one line that names the file, the key and the way out."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from tokenize import TokenError


class MfkitError(Exception):
    """An error with a message for the user and an exit code of its own."""

    exit_code = 1
    everywhere = False
    """Raised in all processes alike, so that one of them tells it."""


class UsageError(MfkitError):
    """Options that contradict each other or the inputs."""

    exit_code = 2


class InputError(MfkitError):
    """A file that is missing, damaged, of another kind, or does not fit the others."""

    exit_code = 3


class OutputError(MfkitError):
    """A result that cannot be written."""

    exit_code = 4


class DivergedError(MfkitError):
    """A loss or gradient that is no longer finite."""

    exit_code = 5
    everywhere = True


class StoppedError(MfkitError):
    """A signal asked to stop, and the work was saved."""

    everywhere = True

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


MALFORMED = (
    ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, LookupError, MemoryError, RuntimeError,
    StopIteration, SyntaxError, TokenError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
"""What libraries raise over content that is not what it says; an OSError besides, where they also open it."""


def reason(error: BaseException) -> str:
    """The words of a library's error, in one line."""
    first = error.args[0] if error.args else None
    said = first if isinstance(first, str) else str(error)  # some carry more than their words
    return " ".join(said.split())[:200] or type(error).__name__


@contextmanager
def using(source: object) -> Iterator[None]:
    """Turns what libraries raise in the block, over the contents of a file of others, into its one-line error."""
    try:
        yield
    except MALFORMED as error:
        raise InputError(f"{source} cannot be used: {reason(error)}") from error
