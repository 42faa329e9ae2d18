"""Guidance of the teacher: against its formula, and through the commands that take it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import failed
from torch import Tensor

from mfkit.errors import UsageError
from mfkit.flow.guidance import Guidance

NULL = 3


def velocity(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return z + (y + 10 * (y == NULL)).view(-1, 1).to(z.dtype)


@pytest.mark.fast
def test_classifier_free_guidance_inside_its_interval() -> None:
    """v0 + W (v - v0) in [A, B], v elsewhere, and v0 for rows without label."""
    z, t = torch.zeros(5, 2, dtype=torch.float64), torch.tensor([0.1, 0.2, 0.5, 0.7, 0.5], dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, NULL])
    guided = Guidance(guidance=2.5, guidance_interval=(0.2, 0.6)).guided(velocity, NULL, 0.1)(z, t, y)
    v, v0 = velocity(z, t, y), velocity(z, t, torch.full_like(y, NULL))
    expected = torch.where(((t >= 0.2) & (t <= 0.6))[:, None], v0 + 2.5 * (v - v0), v)
    assert torch.allclose(guided, expected, rtol=1e-12) and (guided[4] == v0[4]).all()
    assert torch.allclose(Guidance(guidance=0.0).guided(velocity, NULL, None)(z, t, y), v0)


@pytest.mark.fast
def test_outside_the_interval_the_network_runs_once() -> None:
    rows = []

    def counted(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        rows.append(y)
        return velocity(z, t, y)

    guided = Guidance(guidance=2.0, guidance_interval=(0.0, 0.5)).guided(counted, NULL, 0.1)
    for time, times in ((0.9, 1), (0.5, 2)):
        rows.clear()
        guided(torch.zeros(2, 2), torch.full((2,), time), torch.tensor([0, 1]))
        assert len(rows) == times
    assert Guidance().guided(velocity, NULL, 0.0) is velocity


@pytest.mark.fast
@pytest.mark.parametrize("interval", [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.7, 0.2), (float("nan"), 1.0)])
def test_intervals_that_are_none(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 <= A < B <= 1"):
        Guidance(guidance=2.0, guidance_interval=interval)


def test_a_teacher_that_never_dropped_labels_is_refused(mfkit, chain: Path) -> None:
    with pytest.raises(UsageError, match="--class-dropout 0"):
        Guidance(guidance=2.0).guided(velocity, NULL, 0.0)
    teacher = f"{chain}/teacher.safetensors"
    for command in (
        f"sample {teacher} -n 2 -o x.npz --rae {chain}/rae.safetensors",
        f"trajectories --teacher {teacher} -n 2 -o x",
        f"distill --teacher {teacher} --latents {chain}/latents --init {chain}/cmt.safetensors -o x.safetensors",
    ):
        failed(mfkit(f"{command} --guidance 2"), 2, "trained with --class-dropout 0", "--class-dropout 0.1")
        failed(mfkit(f"{command} --guidance-interval 0 0.5"), 2, "--guidance-interval needs --guidance")
    failed(mfkit(f"sample {chain}/mft.safetensors -n 2 -o x.npz --guidance 2"), 2, "guidance is for a teacher")


def test_guided_samples_trajectories_and_students(mfkit, chain: Path) -> None:
    teacher = (
        f"train-teacher {chain}/latents -o teacher.safetensors --steps 4 --batch-size 16 --class-dropout 0.5 "
        "--learning-rate 3e-2 --warmup 0 --ema 0"
    )
    assert mfkit(teacher).code == 0
    flags = "--guidance 30 --guidance-interval 0.1 0.9"
    sample = f"sample teacher.safetensors -n 10 --nfe 4 --rae {chain}/rae.safetensors"
    assert mfkit(f"{sample} -o plain.npz").code == mfkit(f"{sample} -o guided.npz {flags}").code == 0
    plain, guided = np.load("plain.npz"), np.load("guided.npz")
    assert (plain["arr_0"] != guided["arr_0"]).any()
    assert json.loads(str(guided["conditions"]))["guidance"] == {"weight": 30.0, "interval": [0.1, 0.9]}
    assert json.loads(str(plain["conditions"]))["guidance"] is None

    assert mfkit(f"trajectories --teacher teacher.safetensors -n 40 -o traj --solver-steps 2 {flags}").code == 0
    assert json.loads(Path("traj/index.json").read_text())["config"]["guidance"]["weight"] == 30
    assert mfkit("midtrain traj --teacher teacher.safetensors --steps 2 --batch-size 8 -o cmt.safetensors").code == 0
    distill = "distill --teacher teacher.safetensors --init cmt.safetensors --steps 4 --batch-size 16 --log-every 1"
    assert mfkit(f"{distill} -o plain.safetensors").code == 0
    assert mfkit(f"{distill} -o guided.safetensors {flags}").code == 0
    losses = [Path(f"{name}.log.jsonl").read_text().splitlines()[0] for name in ("plain", "guided")]
    assert json.loads(losses[0])["loss"] != json.loads(losses[1])["loss"]
