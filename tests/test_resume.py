"""Resuming: whatever stops a command, and when, the same command goes on to what it would have made undisturbed."""

import json
import os
import signal
import time
from pathlib import Path

from conftest import forked, stopped_once

from mfkit.artifacts.artifact import file_digest
from mfkit.data.writer import seconds_of

RESTLESS = Path(__file__).with_name("restless.py")
KILLS = int(os.environ.get("MFKIT_KILLS", "5"))
"""How often training is killed; 20 were tried, too."""
MIXED = "KILL,TERM"


def stopped_again_and_again(folder: Path, signals: str, *commands: str) -> list[dict[str, int]]:
    """Runs commands undisturbed in ``whole`` and disturbed in ``stopped``; both must hold the same files after them."""
    done = forked(RESTLESS.read_text(), [signals, "0", *commands], folder)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    files = [contents(folder / part) for part in ("whole", "stopped")]
    assert files[0] == files[1] and files[0]
    return json.loads(done.stdout)


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files by name; of a log, all but its time, and no file of a time alone."""
    return {
        str(path.relative_to(folder)): file_digest(path) if path.suffix != ".jsonl" else losses(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".time.json"
    }


def losses(log: Path) -> str:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return str([{name: value for name, value in line.items() if name != "samples_per_second"} for line in lines])


def test_training_killed_again_and_again(chain: Path, tmp_path: Path) -> None:
    """In the middle of epochs, of accumulated steps and of saving, to the same bytes."""
    (told,) = stopped_again_and_again(
        tmp_path, ",".join(KILLS * ["KILL"]),
        f"train-teacher {chain}/latents -o t.safetensors --steps {5 * KILLS} --batch-size 16 --micro-batch 8 "
        "--save-every 1 --log-every 1 --class-dropout 0.2",
    )  # fmt: skip
    assert told["met"] >= KILLS // 4


def test_schedules_and_averaged_weights_go_on(chain: Path, tmp_path: Path) -> None:
    start = f"--init {chain}/cmt.safetensors --latents {chain}/latents --steps 6 --save-every 1 --log-every 1"
    stopped_again_and_again(
        tmp_path, "KILL",
        f"distill --teacher {chain}/teacher.safetensors {start} --batch-size 16 --objective soflow -o s.safetensors",
        f"bootstrap {start} --batch-size 16 --objective shortcut -o h.safetensors",
    )  # fmt: skip


def test_stopped_by_signals(chain: Path, tmp_path: Path) -> None:
    commands = [
        "encode digits:heldout --rae {}/rae.safetensors -o latents --shard-size 20 --batch-size 10 --mirror",
        "trajectories --teacher {}/teacher.safetensors -n 60 -o traj --solver-steps 4 --shard-size 10",
        "sample {}/mft.safetensors -n 1100 -o samples --batch-size 100",
        "decode {}/latents -o decoded --batch-size 10",
        "train-rae digits:train --encoder tiny -o rae.safetensors --pretrain-steps 4 --steps 4 --batch-size 32 "
        "--save-every 2 --log-every 1",
    ]
    told = stopped_again_and_again(tmp_path, MIXED, *(command.format(chain) for command in commands))
    assert len(told) == len(commands) and all(one["sent"] >= 1 for one in told)
    for name in ("latents", "traj", "samples", "decoded"):
        whole, stopped = (seconds_of(tmp_path / place / name) for place in ("whole", "stopped"))
        assert whole and stopped


def test_the_time_of_a_folder_adds_up(mfkit, chain: Path, tmp_path: Path) -> None:
    """Over what a signal stopped; what overwrites it begins anew."""
    encode = f"encode digits:train --rae {chain}/rae.safetensors -o latents --shard-size 20 --batch-size 10"
    with stopped_once(lambda: len(list(tmp_path.rglob("*.tar"))) > 5, signal.SIGTERM):
        assert mfkit(encode).code == 128 + signal.SIGTERM
    before = seconds_of(tmp_path / "latents")
    began = time.perf_counter()
    assert mfkit(encode).code == 0
    assert before and before < seconds_of(tmp_path / "latents") < before + time.perf_counter() - began
    (tmp_path / "latents" / ".time.json").write_text('{"seconds": 1000}')
    assert mfkit(f"{encode} --overwrite").code == 0
    assert 0 < seconds_of(tmp_path / "latents") < 100
