"""Faults done for real: a full file system, a second command, a lost process, numbers that are not finite."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import failed, forked, several, several_as_script, shell, stopped_once
from safetensors.torch import load_file

from mfkit.data.codecs import array_bytes
from mfkit.data.writer import write_shard
from mfkit.training.checkpoint import checkpoints

TRAIN = "train-teacher {}/latents -o t.safetensors --optimizer adamw --batch-size 16 --log-every 1"


def may_mount() -> bool:
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="this system allows no file system of one's own")
def test_a_full_or_read_only_file_system(chain: Path, tmp_path: Path) -> None:
    """Of 2 MB, in a name space of its own: what was there stays, what does not fit leaves nothing."""
    train = f"{TRAIN.format(chain)} --steps 2 --overwrite"
    draw = f"sample {chain}/mft.safetensors -n 1000 -o x.npz"
    encode = f"encode digits:train --rae {chain}/rae.safetensors -o latents --shard-size 400"
    (tmp_path / "disk").mkdir()
    look = "!find . -type f; cat t.safetensors"
    run = several_as_script(tmp_path, train, encode, draw, look, "!mount -o remount,ro .", train, draw)
    script = f"mount -t tmpfs -o size=2m tmpfs disk && cd disk && echo kept > t.safetensors; {run}"
    done = shell(f"unshare -rm bash -c {shlex.quote(script)}", tmp_path)
    left = ["t.safetensors", "t.log.jsonl", "latents/00000.tar", "latents/.progress/settings", "latents/.time.json"]
    words = done.stdout.splitlines()
    assert (tmp_path / "codes0").read_text().split() == ["4", "4", "4", "0", "0", "4", "4"], done.stderr
    found = {word for word in words if word.startswith("./")}
    assert found == {f"./{name}" for name in [*left, "latents/.progress/00000000.json"]} and "kept" in words
    lines = done.stderr.splitlines()
    assert len(lines) == 5 and all(line.startswith("mfkit: error: cannot write") for line in lines), done.stderr
    assert all("No space left" in line for line in lines[:3]) and all("Read-only" in line for line in lines[3:])


def running(command: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *command.split()], cwd=cwd, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(path: Path, text: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end, f"{path} never said {text}"
        time.sleep(0.02)


def test_two_commands_and_one_output(chain: Path, tmp_path: Path, mfkit) -> None:
    first = running(f"mfkit {TRAIN.format(chain)} --steps 100000", tmp_path)
    try:
        wait_for(tmp_path / "t.log.jsonl", '"step": 2')
        failed(mfkit(TRAIN.format(chain) + " --steps 3"), 4, "another command is writing t.safetensors")
        failed(mfkit(TRAIN.format(chain) + " --steps 3 --restart --overwrite"), 4, "another command is writing")
    finally:
        first.kill()
        first.communicate()
    assert mfkit(TRAIN.format(chain) + " --steps 3").code == 0  # the lock went with its process
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_the_run_goes_on(number: signal.Signals, chain: Path, tmp_path: Path, mfkit) -> None:
    command = TRAIN.format(chain) + " --steps 100000"
    run = running(f"mfkit {command}", tmp_path)
    wait_for(tmp_path / "t.log.jsonl", '"step": 2')
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 128 + number and f"{number.name}: saved after step" in said
    (kept,) = checkpoints(tmp_path / "t.safetensors")
    step = int(kept.name.split("-")[1].split(".")[0])
    assert f"after step {step} of" in said and step >= 2
    refused = mfkit(command.replace("100000", "3") + " --learning-rate 0.5")
    failed(refused, 2, "steps was 100000, is 3", "learning_rate", "--restart")


def test_checkpoints_by_the_clock_and_how_many_stay(chain: Path, tmp_path: Path, mfkit) -> None:
    """The signal that ends it comes once there is a checkpoint that no step count asked for; it saves one more."""
    by_clock = f"{TRAIN.format(chain)} --steps 100000 --save-every 100000 --save-minutes 0.003 --keep 3"
    seen: list[int] = []

    def several_are_there() -> bool:
        seen.append(len(checkpoints(tmp_path / "t.safetensors")))
        return seen[-1] == 3 and seen.count(3) > 50  # for so long that a fourth has come and gone

    with stopped_once(several_are_there, signal.SIGTERM):
        assert mfkit(by_clock).code == 143
    assert len(checkpoints(tmp_path / "t.safetensors")) == 3 and max(seen) <= 4
    steps = [int(path.name[13:20]) for path in checkpoints(tmp_path / "t.safetensors")]
    assert steps == sorted(steps) and all(step % 100000 for step in steps)


def poisoned(folder: Path, number: int) -> Path:
    """Latents of which one is not finite."""
    rows = []
    for i in range(64):
        value = np.full((8, 4, 4), np.nan if i == number else 0.1, np.float32)
        rows.append({"__key__": f"{i}", "latent.npy": array_bytes(value), "cls": b"1"})
    write_shard(folder / "x.tar", rows)
    return folder / "x.tar"


def test_numbers_that_are_not_finite_stop_all_processes(tmp_path: Path) -> None:
    """One row in the half of one process: both end, and both keep what they had in that step."""
    poisoned(tmp_path, 5)
    began = time.monotonic()
    command = (
        "train-teacher x.tar --preset digits --classes 10 -o t.safetensors --steps 100000 --batch-size 4 "
        "--save-every 1 --log-every 100000"
    )
    done = several(tmp_path, command, processes=2)
    assert time.monotonic() - began < 60
    assert [(tmp_path / f"codes{rank}").read_text() for rank in (0, 1)] == 2 * ["5\n"]
    assert done.stderr.count("mfkit: error: a loss or gradient was not finite in step") == 1, done.stderr
    parts = [load_file(tmp_path / f"t.diverged{part}.safetensors") for part in ("", "-1")]
    assert sum(int(part["latent"].isnan().any()) for part in parts) == 1
    step = next(int(word) for word in done.stderr.split("in step ")[1].split(":")[0].split())
    positions = torch.cat([part["position"] for part in parts])
    assert sorted(positions.tolist()) == list(range(4 * (step - 1), 4 * step))
    kept = checkpoints(tmp_path / "t.safetensors")
    assert (f"t.checkpoint-{step - 1:07d}" in kept[-1].name) if step > 1 else not kept
    for path in kept:
        assert all(value.isfinite().all() for value in load_file(path).values())


def test_a_lost_process_ends_the_others(chain: Path, tmp_path: Path) -> None:
    run = running(
        f"torch.distributed.run --standalone --nproc_per_node 2 -m mfkit {TRAIN.format(chain)} --steps 100000", tmp_path
    )
    wait_for(tmp_path / "t.log.jsonl", '"step": 2')
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    workers = [child for child in children if "mfkit" in Path(f"/proc/{child}/cmdline").read_text()]
    assert len(workers) == 2
    began = time.monotonic()
    os.kill(int(workers[1]), signal.SIGKILL)
    run.communicate(timeout=60)
    assert run.returncode != 0 and time.monotonic() - began < 30
    assert not Path(f"/proc/{workers[0]}/cmdline").exists()


def test_another_number_of_processes_goes_on_with_the_same_order(chain: Path, tmp_path: Path, mfkit) -> None:
    """Stopped as one process, ended as two: the weights of a run that was neither."""
    command = TRAIN.format(chain).replace("--log-every 1", "--log-every 2 --save-every 3 --micro-batch 4")
    assert mfkit(command.replace("t.s", "whole.s") + " --steps 8").code == 0
    with stopped_once(lambda: checkpoints(tmp_path / "t.safetensors"), signal.SIGTERM):
        stopped = mfkit(f"{command} --steps 8")
    assert stopped.code == 143 and checkpoints(tmp_path / "t.safetensors"), stopped.err
    done = several(tmp_path, f"{command} --steps 8", processes=2)
    assert done.returncode == 0 and (tmp_path / "t.safetensors").exists(), done.stderr
    one, other = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "t.safetensors")
    assert max(float((one[name] - other[name]).norm() / (one[name].norm() + 1e-3)) for name in one) < 1e-4


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """3,000 steps of the loop, with its reading, log, average and checkpoints, on a network of one layer."""
    code = (
        "from pathlib import Path\n"
        "import torch\n"
        "from torch import nn\n"
        "from mfkit.config import presets\n"
        "from mfkit.data.images import open_images\n"
        "from mfkit.flow.objectives.base import Loss\n"
        "from mfkit.config.settings import TrainingSettings\n"
        "from mfkit.data.order import shuffle\n"
        "from mfkit.training.loop import train\n"
        "from mfkit.training.task import RunOptions, Task, in_one_piece\n"
        "torch.set_num_threads(1)\n"
        "layer, seen = nn.Linear(192, 10), []\n"
        "def loss(net, batch):\n"
        "    seen.append(int(Path('/proc/self/statm').read_text().split()[1]) if len(seen) % 100 == 0 else 0)\n"
        "    value = net(batch.columns['image'].flatten(1).float() / 255).square().mean()\n"
        "    return Loss(value, value.detach())\n"
        "changes = dict(steps=3_000, batch_size=4, save_every=1000, log_every=10, workers=1, learning_rate=1e-6)\n"
        "settings = presets.resolve(TrainingSettings, 'train-teacher', 'digits', changes)\n"
        "data = shuffle(open_images('digits', 8))\n"
        "task = Task(network=layer, data=data, loss=in_one_piece(loss), settings=settings, resume_key={})\n"
        "train(task, RunOptions(output=Path('x.safetensors')))\n"
        "print(seen[1000], seen[2900])\n"
    )
    done = forked(code, [], tmp_path)
    assert done.returncode == 0, done.stderr
    early, late = (int(word) for word in done.stdout.split())
    assert late <= 1.01 * early, (early, late)


def test_a_second_signal_ends_at_once(chain: Path, tmp_path: Path) -> None:
    """A step of all latents takes a second or more; the second signal does not wait for it."""
    command = TRAIN.format(chain).replace("--batch-size 16", "--batch-size 700") + " --steps 50"
    run = running(f"mfkit {command}", tmp_path)
    wait_for(tmp_path / "t.log.jsonl", '"step": 1')
    run.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, said = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM and time.monotonic() - began < 1
    assert "saved" not in said and not checkpoints(tmp_path / "t.safetensors")
