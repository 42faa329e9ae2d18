"""Serves forks of a process that has imported what mfkit's commands need: other processes, without seconds of imports.

Each line of standard input is a request, as JSON: Python code to run, its arguments and its folder; its output goes to
the files ``out`` and ``err``. Answers with its exit code.
"""

import json
import os
import signal
import sys
import traceback
from typing import NoReturn

import torch

import mfkit.commands.main
import mfkit.commands.training
import mfkit.inference.sample
import mfkit.inference.trajectories
import mfkit.training.autoencoder  # noqa: F401

SECONDS = 240
"""After which a fork is given up."""


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if not process:
            run(**request)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(code: str, arguments: list[str], folder: str, out: str, err: str) -> NoReturn:
    signal.alarm(SECONDS)
    os.chdir(folder)
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), number)
    sys.argv = ["forked", *arguments]
    status = 1
    try:
        exec(compile(code, "forked", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        print(stop.code if isinstance(stop.code, str) else "", end="", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
