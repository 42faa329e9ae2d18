"""Messages: results on standard output, everything else on standard error, errors as one line."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mfkit.errors import MfkitError


@dataclass(frozen=True)
class Verbosity:
    """How much a command says on standard error; by default, little when it is no terminal."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False

    def apply(self) -> None:
        level = logging.INFO if sys.stderr.isatty() else logging.WARNING
        if self.verbose:
            level = logging.DEBUG
        if self.quiet:
            level = logging.ERROR
        logging.basicConfig(stream=sys.stderr, format="mfkit: %(message)s", level=logging.WARNING)
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
    if "mfkit.processes" in sys.modules:
        sys.modules["mfkit.processes"].leave()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns errors that a user can mend into one line and an exit code; ``--debug`` shows the traceback too."""
    try:
        yield
    except MfkitError as error:
        _exit(str(error), error.exit_code)
    except KeyboardInterrupt:
        _exit("interrupted; the same command goes on from the last checkpoint or shard", 128 + signal.SIGINT)
    except BrokenPipeError:
        # Python would try to flush standard output once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        _exit(f"{error.filename or 'output'}: {error.strerror}", 4)


def _exit(message: str, code: int) -> None:
    if os.environ.get("MFKIT_DEBUG"):
        import traceback

        traceback.print_exc()
    print(f"mfkit: error: {message}", file=sys.stderr)
    sys.exit(code)
