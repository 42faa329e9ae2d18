"""Runs command lines to their end in the folder ``whole``, then in ``stopped``, stopped again and again before it.

Its arguments are SIGNALS SEED COMMAND…, such as ``KILL,KILL,TERM 0 "encode …" "sample …"``. Each run is a fork of
this process, which has imported all that it needs. The moments are random; every other signal waits for a file that is
being written. Prints, as JSON and for each command, how many signals were sent, and how many met such a file.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import mfkit.commands.main
import mfkit.commands.training
import mfkit.inference.sample
import mfkit.inference.trajectories  # noqa: F401
import mfkit.training.autoencoder

STARTING = 0.3
"""Seconds that a run takes before its first result, roughly."""


class Running:
    """A fork that runs the command."""

    def __init__(self, arguments: list[str]) -> None:
        self.process = os.fork()
        if self.process:
            return
        sys.argv = ["mfkit", *arguments]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 1
        try:
            mfkit.commands.main.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            os._exit(code)

    def ended(self, flags: int = os.WNOHANG) -> bool:
        """Whether it came to its end; an error of its own is one of the test."""
        done, status = os.waitpid(self.process, flags)
        if done and os.waitstatus_to_exitcode(status):
            sys.exit(f"ended with {os.waitstatus_to_exitcode(status)}")
        return bool(done)

    def stopped(self, number: signal.Signals) -> bool:
        """Sends a signal, whose own exit code the run must end with; False where it was at its end."""
        os.kill(self.process, number)
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        if code not in (0, -number, 128 + number):  # negative: it had not begun, or the signal cannot be caught
            sys.exit(f"{number.name}: ended with {code}")
        return code != 0


def complete() -> bool:
    """Whether all files are there: a kill may come after the last of them, before the process is gone.

    Or before it has removed the last checkpoint, which goes on to no more than what is there.
    """
    here, whole = ({path.relative_to(top) for path in top.rglob("*")} for top in (Path(), Path("../whole")))
    left = here - whole
    if not here >= whole or not all(".checkpoint-" in path.name for path in left):
        return False
    for path in left:
        path.unlink()
    return True


def being_written() -> bool:
    with contextlib.suppress(FileNotFoundError):
        return any(Path().rglob(".*.partial"))
    return False


def main() -> None:
    signals = [signal.Signals[f"SIG{name}"] for name in sys.argv[1].split(",")]
    chance, commands = random.Random(int(sys.argv[2])), sys.argv[3:]
    torch.set_num_threads(1)
    for folder in ("whole", "stopped"):
        Path(folder).mkdir()
    print(json.dumps([disturbed(command.split(), signals, chance) for command in commands]))


def disturbed(arguments: list[str], signals: list[signal.Signals], chance: random.Random) -> dict[str, int]:
    os.chdir("whole")
    began = time.monotonic()
    assert Running(arguments).ended(0)
    share = (time.monotonic() - began) / len(signals)
    os.chdir("../stopped")
    sent = met = 0
    ended = False
    while not ended and sent < len(signals):
        running, until = Running(arguments), time.monotonic() + chance.uniform(0, STARTING + share)
        while not ended and (time.monotonic() < until or (sent % 2 and not being_written())):
            time.sleep(0.0005)
            ended = running.ended()
        if not ended:
            met += being_written()
            ended = not running.stopped(signals[sent]) or complete()
            sent += 1
    assert ended or Running(arguments).ended(0)
    os.chdir("..")
    return {"sent": sent, "met": met}


if __name__ == "__main__":
    main()
