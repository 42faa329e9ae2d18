"""Messages: results on standard output, everything else on standard error, errors as one line."""

import io
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from mfkit.errors import MfkitError, OutOfMemoryError, is_out_of_memory, reason

_MAIN_FIRST = 3.0
"""Seconds that other processes keep an error back: if the main one has it too, its launcher ends them meanwhile."""

_MEMORY_OPTIONS = {
    "micro_batch": "lower --micro-batch",
    "activation_checkpointing": "pass --activation-checkpointing",
    "batch_size": "lower --batch-size",
    "precision": "pass --precision bf16",
}
"""What a user can turn when memory runs out, by the option."""


def set_verbosity(*, quiet: bool, verbose: bool, debug: bool) -> None:
    """How much a command says on standard error; by default, little where that is no terminal."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path is printed as it is, be it text or not
        sys.stdout.reconfigure(errors="surrogateescape")
    level = logging.INFO if sys.stderr.isatty() else logging.WARNING
    if verbose:
        level = logging.DEBUG
    if quiet:
        level = logging.ERROR
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("mfkit: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("mfkit").setLevel(level)
    logging.captureWarnings(True)
    if not verbose:
        warnings.simplefilter("ignore")
        logging.getLogger().setLevel(logging.ERROR)
    if debug:
        os.environ["MFKIT_DEBUG"] = "1"


def is_main_process() -> bool:
    """Whether this is the one process, or the first of those that a launcher started."""
    return int(os.environ.get("RANK", "0")) == 0


def leave_process_group() -> None:
    """Ends the command's part in a group of processes, if it took one."""
    if "mfkit.runtime.distributed" in sys.modules:
        sys.modules["mfkit.runtime.distributed"].shutdown()


class _Signalled(BaseException):
    """SIGTERM or SIGUSR1, raised where the command is, so that it cleans up as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def one_line_errors(options: Collection[str]) -> Iterator[None]:
    """Turns errors that a user can mend into one line and an exit code; a bug of mfkit keeps its traceback.

    A signal that asks to stop becomes a line too, but for training, which saves first; a second one ends the process.

    :param options: names of the command's options, for the way out of too little memory.
    """
    try:
        with _stopped_by_signals():
            yield
    except MfkitError as error:
        _exit_by(error)
    except (_Signalled, KeyboardInterrupt) as error:
        number = error.number if isinstance(error, _Signalled) else signal.SIGINT
        name = signal.Signals(number).name
        _exit(f"{name}: interrupted; the same command goes on from the last checkpoint or shard", 128 + number)
    except BrokenPipeError:
        # Python would try to flush standard output once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if is_out_of_memory(error):
            _exit_by(OutOfMemoryError(_memory_message(error, options)))
        if isinstance(error, OSError):
            _exit(f"{error.filename or 'output'}: {error.strerror}", 4)
        if _is_of_a_lost_process(error):
            _exit("another process of this run has ended; its error is the one to mend", 1)
        if not os.environ.get("MFKIT_DEBUG"):
            traceback.print_exc()
        _exit(f"unexpected error, please report it with the lines above: {type(error).__name__}: {reason(error)}", 1)


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
            if signal.getsignal(number) is not signal.SIG_IGN:  # as it is once the output is complete
                signal.signal(number, handler)


def _memory_message(error: BaseException, options: Collection[str]) -> str:
    ways = [way for option, way in _MEMORY_OPTIONS.items() if option in options]
    resumed = "; a checkpoint resumes with another --micro-batch" if "micro_batch" in options else ""
    return f"out of memory: {', or '.join(ways) or 'this machine is too small for it'}{resumed} ({reason(error)})"


def _is_of_a_lost_process(error: BaseException) -> bool:
    """Whether it is what the exchange with another process raises when that one is gone."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return False
    return isinstance(error, RuntimeError) and (
        isinstance(error, distributed.DistError) or "gloo" in str(error) or "Connection" in str(error)
    )


def _exit_by(error: MfkitError) -> None:
    if not is_main_process():
        with suppress(KeyboardInterrupt):
            time.sleep(_MAIN_FIRST)
        if error.in_all_processes:
            sys.exit(error.exit_code)
    _exit(str(error), error.exit_code)


def _exit(message: str, code: int) -> None:
    if os.environ.get("MFKIT_DEBUG"):
        traceback.print_exc()
    print(f"mfkit: error: {printable(message)}", file=sys.stderr)
    sys.exit(code)


def printable(text: str) -> str:
    """A text in which names from files cannot command the terminal: what is no printable character, as its escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line) for line in super().format(record).split("\n"))
