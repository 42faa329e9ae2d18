"""Messages: results on standard output, everything else on standard error, errors as one line."""

import io
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from mfkit.errors import MALFORMED, MfkitError, reason

_MAIN_FIRST = 3.0
"""Seconds that other processes keep an error back: if the main one has it too, its launcher ends them meanwhile."""


@dataclass(frozen=True)
class Verbosity:
    """How much a command says on standard error; by default, little when it is no terminal."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False

    def apply(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # a path is printed as it is, be it text or not
            sys.stdout.reconfigure(errors="surrogateescape")
        level = logging.INFO if sys.stderr.isatty() else logging.WARNING
        if self.verbose:
            level = logging.DEBUG
        if self.quiet:
            level = logging.ERROR
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Formatter("mfkit: %(message)s"))
        logging.basicConfig(handlers=[handler], level=logging.WARNING)
        logging.getLogger("mfkit").setLevel(level)
        logging.captureWarnings(True)
        if not self.verbose:
            warnings.simplefilter("ignore")
            logging.getLogger().setLevel(logging.ERROR)
        if self.debug:
            os.environ["MFKIT_DEBUG"] = "1"


def is_main_process() -> bool:
    """Whether this is the one process, or the first of those that a launcher started."""
    return int(os.environ.get("RANK", "0")) == 0


def leave() -> None:
    """Ends the command's part in a group of processes, if it took one."""
    if "mfkit.runtime.distributed" in sys.modules:
        sys.modules["mfkit.runtime.distributed"].leave()


class _Signalled(BaseException):
    """SIGTERM or SIGUSR1, raised where the command is, so that it cleans up as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns errors that a user can mend into one line and an exit code; ``--debug`` shows the traceback too.

    So does a signal that asks to stop, but for training, which saves first; a second one ends the process at once.
    """
    try:
        with _stopped_by_signals():
            yield
    except MfkitError as error:
        if not is_main_process():
            with suppress(KeyboardInterrupt):
                time.sleep(_MAIN_FIRST)
            if error.everywhere:
                sys.exit(error.exit_code)
        _exit(str(error), error.exit_code)
    except (_Signalled, KeyboardInterrupt) as error:
        number = error.number if isinstance(error, _Signalled) else signal.SIGINT
        name = signal.Signals(number).name
        _exit(f"{name}: interrupted; the same command goes on from the last checkpoint or shard", 128 + number)
    except BrokenPipeError:
        # Python would try to flush standard output once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        _exit(f"{error.filename or 'output'}: {error.strerror}", 4)
    except MALFORMED as error:
        if _is_of_a_lost_process(error):
            _exit("another process of this run has ended; its error is the one to mend", 1)
        _exit(f"{type(error).__name__}, which mfkit did not foresee: {reason(error)}; --debug shows where", 1)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise _Signalled(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_of_a_lost_process(error: BaseException) -> bool:
    """Whether it is what the exchange with another process raises when that one is gone."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return False
    return isinstance(error, RuntimeError) and (
        isinstance(error, distributed.DistError) or "gloo" in str(error) or "Connection" in str(error)
    )


def _exit(message: str, code: int) -> None:
    if os.environ.get("MFKIT_DEBUG"):
        import traceback

        traceback.print_exc()
    print(f"mfkit: error: {printable(message)}", file=sys.stderr)
    sys.exit(code)


def printable(text: str) -> str:
    """A text in which names from files cannot command the terminal: what is no printable character, as its escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line) for line in super().format(record).split("\n"))
