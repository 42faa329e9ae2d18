"""What can go wrong, as the user sees it: one line that names the file, the key and the way out."""

from collections.abc import Iterator
from contextlib import contextmanager


class MfkitError(Exception):
    """An error with a message for the user and an exit code of its own."""

    exit_code = 1


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


@contextmanager
def using(source: object) -> Iterator[None]:
    """Turns what libraries raise in the block, over the contents of a file of others, into its one-line error."""
    try:
        yield
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{source} cannot be used: {reason}") from error
