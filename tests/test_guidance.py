"""Guidance of the teacher: against its formula, and through the commands that take it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import failed
from torch import Tensor

from mfkit.artifacts.artifact import open_artifact
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
    done = mfkit(f"export guided.safetensors -o pipeline --rae {chain}/rae.safetensors")
    assert done.code == 0, done.err
    assert "Its teacher was guided, W = 30 in [0.1, 0.9]." in Path("pipeline/README.md").read_text()
    student = open_artifact(Path("guided.safetensors"))
    assert all(record.settings for record in student.provenance.history.values() if record.command)


@pytest.mark.fast
def test_a_weaker_teacher_guides_with_the_label() -> None:
    """v' + W (v - v'), v' that of the weaker one, with the same labels; no label need ever have been dropped."""
    z, t, y = torch.ones(3, 2), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])
    seen = []

    def weaker(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return 0.5 * velocity(z, t, y)

    guided = Guidance(guidance=1.4, guidance_interval=(0.0, 0.6)).guided(velocity, NULL, 0.0, weaker)(z, t, y)
    v, other = velocity(z, t, y), 0.5 * velocity(z, t, y)
    assert torch.allclose(guided, torch.where((t <= 0.6)[:, None], other + 1.4 * (v - other), v))
    assert torch.equal(seen[0], y)


@pytest.mark.fast
def test_the_weight_falls_with_the_ratio_of_the_difference() -> None:
    """w = 1 + (W - 1) exp(-A |v - v0| / |v0|), of each sample by itself (RAAG)."""
    z, t, y = torch.randn(4, 6, dtype=torch.float64), torch.full((4,), 0.5), torch.tensor([0, 1, 2, NULL])
    rule = Guidance(guidance=9.0, guidance_rule="ratio-aware", guidance_fall=3.0)
    guided = rule.guided(velocity, NULL, 0.1)(z, t, y)
    v, v0 = velocity(z, t, y), velocity(z, t, torch.full_like(y, NULL))
    ratio = (v - v0).norm(dim=1) / v0.norm(dim=1)
    w = 1 + 8 * torch.exp(-3 * ratio)[:, None]
    assert torch.allclose(guided, v0 + w * (v - v0), rtol=1e-12)
    assert rule.conditions == {"weight": 9.0, "interval": [0.0, 1.0], "rule": "ratio-aware", "fall": 3.0}
    with pytest.raises(ValueError, match="--guidance-rule needs --guidance"):
        Guidance(guidance_rule="ratio-aware")


def test_a_guide_wherever_a_teacher_is_asked(mfkit, chain: Path) -> None:
    train = f"train-teacher {chain}/latents --batch-size 16 --learning-rate 3e-2 --warmup 0 --ema 0"
    assert mfkit(f"{train} --steps 2 -o weak.safetensors").code == 0
    teacher = f"{chain}/teacher.safetensors"
    guide = "--guide weak.safetensors --guidance 1.5"
    sample = f"sample {teacher} -n 10 --nfe 4 --rae {chain}/rae.safetensors"
    assert mfkit(f"{sample} -o plain.npz").code == mfkit(f"{sample} -o guided.npz {guide}").code == 0
    plain, guided = np.load("plain.npz"), np.load("guided.npz")
    assert (plain["arr_0"] != guided["arr_0"]).any()
    weak = open_artifact(Path("weak.safetensors")).digest
    assert json.loads(str(guided["conditions"]))["guidance"] == {"weight": 1.5, "interval": [0.0, 1.0], "guide": weak}

    assert mfkit(f"trajectories --teacher {teacher} -n 20 -o traj --solver-steps 2 {guide}").code == 0
    index = json.loads(Path("traj/index.json").read_text())
    assert index["config"]["guidance"]["guide"] == weak and "guide" in index["provenance"]["inputs"]
    distill = f"distill --teacher {teacher} --latents {chain}/latents --steps 2 --batch-size 16 -o d.safetensors"
    assert mfkit(f"{distill} {guide}").code == 0
    assert "guide" in open_artifact(Path("d.safetensors")).provenance.inputs

    failed(mfkit(f"{sample} -o x.npz --guide weak.safetensors"), 2, "--guide needs --guidance W")
    failed(mfkit(f"{sample} -o x.npz --guidance 2 --guidance-fall 3"), 2, "--guidance-fall is of --guidance-rule ratio")
    failed(mfkit(f"{sample} -o x.npz --guide {chain}/cmt.safetensors --guidance 2"), 3, "student")
    other = "train-rae digits:heldout --encoder tiny -o other.safetensors --pretrain-steps 1 --steps 1 --batch-size 16"
    assert mfkit(other).code == 0
    assert mfkit("encode digits:heldout --rae other.safetensors -o others").code == 0
    assert mfkit("train-teacher others --steps 1 --batch-size 16 -o foreign.safetensors").code == 0
    failed(mfkit(f"{sample} -o x.npz --guide foreign.safetensors --guidance 2"), 3, "two different autoencoders")
