"""Fixtures: the command line in this process, and a tiny chain of artifacts that the tests share."""

import atexit
import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch

from mfkit.commands.main import main

torch.set_num_threads(1)


@dataclass
class Result:
    code: int
    out: str
    err: str
    raw: bytes = field(default=b"", compare=False, repr=False)
    """Standard output as it is, such as a stream."""


class _Bytes(io.TextIOWrapper):
    """Standard output that keeps what is written to it, text or bytes."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def data(self) -> bytes:
        return self.buffer.getvalue()


@pytest.fixture
def mfkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Result]:
    """Runs a command line in this process, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return lambda command: run(command, monkeypatch)


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    out, err = _Bytes(), io.StringIO()
    monkeypatch.setattr(sys, "argv", ["mfkit", *shlex.split(command)])
    monkeypatch.setattr(sys, "stdout", out)
    code = 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return Result(code, out.data().decode(errors="replace"), err.getvalue(), out.data())


def failed(result: Result, code: int, *words: str) -> None:
    """The command ended with this exit code and one line that holds these words."""
    assert result.code == code, result.err
    assert result.out == "" and result.err.startswith("mfkit: error: ") and result.err.count("\n") == 1, result.err
    for word in words:
        assert word in result.err, result.err


def close(ours: torch.Tensor, exact: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Relative, as a norm over all numbers."""
    error = (ours.double() - exact).norm() / exact.norm()
    assert error < tolerance, float(error)


def shell(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell line with mfkit on its path, as a user would, in other processes."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=cwd,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


@contextmanager
def stopped_once(there: Callable[[], object], number: signal.Signals) -> Iterator[None]:
    """Sends this process a signal as soon as ``there`` is true."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if there():
                os.kill(os.getpid(), number)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@cache
def fork_server() -> subprocess.Popen[str]:
    program = Path(__file__).with_name("forks.py")
    server = subprocess.Popen(
        [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    atexit.register(server.kill)
    return server


def forked(code: str, arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own that has imported mfkit already."""
    server, files = fork_server(), [folder / f".{name}" for name in ("out", "err")]
    request = dict(code=code, arguments=list(arguments), folder=str(folder), out=str(files[0]), err=str(files[1]))
    assert server.stdin and server.stdout
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    status = int(server.stdout.readline())
    said = [path.read_text() for path in files]
    for path in files:
        path.unlink()
    return subprocess.CompletedProcess(["forked", *arguments], status, *said)


def several(folder: Path, *commands: str, processes: int = 1, before: str = "") -> subprocess.CompletedProcess[str]:
    """Runs commands of mfkit one after the other, and those after ``!`` in a shell.

    In one process, or in forks of it that are to each other what a launcher's processes are. Each runs the Python code
    ``before`` first, and writes the exit codes to ``codes`` and its rank.
    """
    return forked(
        FORKS + before + COMMANDS, [str(processes), str(free_port()), str(folder / "codes"), *commands], folder
    )


def several_as_script(folder: Path, *commands: str) -> str:
    """The same as a shell command, in one process."""
    (folder / "several.py").write_text(FORKS + COMMANDS)
    return shlex.join([sys.executable, str(folder / "several.py"), "1", "0", str(folder / "codes"), *commands])


FORKS = """
import os, subprocess, sys
import mfkit.runtime.distributed, mfkit.training.autoencoder, mfkit.inference.sample
import mfkit.commands.training, mfkit.inference.trajectories
from mfkit.commands.main import main

mfkit.runtime.distributed.shutdown = lambda: None
processes, port, codes, *commands = sys.argv[1:]
forks = []
for rank in range(int(processes) if int(processes) > 1 else 0):
    forks.append(os.fork())
    if not forks[-1]:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": processes,
                       "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        forks = []
        break
if forks:
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) for fork in forks))
"""
COMMANDS = """
for command in commands:
    code = 0
    sys.argv = ["mfkit", *command.split()]
    try:
        subprocess.run(command[1:], shell=True) if command[0] == "!" else main()
    except SystemExit as stop:
        code = stop.code or 0
    sys.stdout.flush()
    with open(codes + os.environ.get("RANK", "0"), "a") as file:
        print(code, file=file)
"""


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every artifact of the chain, from a few steps of training. Not to be written to."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (
            "train-rae digits:train --encoder tiny -o rae.safetensors --pretrain-steps 3 --steps 3 --batch-size 32",
            "encode digits:train --rae rae.safetensors -o latents --shard-size 400",
            "train-teacher latents -o teacher.safetensors --steps 6 --batch-size 16 --log-every 2 --learning-rate 3e-2",
            "trajectories --teacher teacher.safetensors -n 64 -o traj --solver-steps 4 --shard-size 40",
            "midtrain traj --teacher teacher.safetensors --steps 4 --batch-size 16 --log-every 2",
            "distill --teacher teacher.safetensors --init cmt.safetensors --steps 4 --batch-size 16 --log-every 2",
            "bootstrap --init mfd.safetensors --steps 4 --batch-size 16 --log-every 2",
            "sample mft.safetensors -n 40 -o samples",
        ):
            result = run(command, patch)
            assert result.code == 0, f"{command}\n{result.err}"
    return folder
