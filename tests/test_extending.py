"""To add a thing is a file and a line in a table: done here, and used through the commands like any other."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import failed, stopped_once
from safetensors.torch import load_file
from torch import Tensor, nn

import mfkit as package
from mfkit.flow.objectives import OBJECTIVES
from mfkit.flow.objectives.base import GRADIENT, Batch, Loss, Models, Objective, Stage, mean_squared
from mfkit.flow.objectives.coupled import CoupledObjective, one_step
from mfkit.flow.times import expand_to, interpolate
from mfkit.models.architectures import ARCHITECTURES
from mfkit.models.dit import DiTConfig
from mfkit.models.generator import Architecture, Student, Teacher
from mfkit.setting import setting
from mfkit.training.checkpoint import checkpoints


@dataclass(frozen=True, kw_only=True)
class Centred(Objective):
    """Flow matching of latents less a running mean, which it keeps between steps."""

    heading: ClassVar[str] = "Centred"
    name: ClassVar[str] = "centred"
    summary: ClassVar[str] = "flow matching of centred latents"
    stages: ClassVar[tuple[Stage, ...]] = ("bootstrap",)

    momentum: float = setting(0.5, "Momentum of the mean.", metavar="M", min=0, max=1)

    def forward_passes(self, stage: Stage) -> float:
        return GRADIENT

    def initial_state(self, models: Models) -> dict[str, Tensor]:
        return {"mean": torch.zeros(32, 4, 4)}

    def __call__(self, models: Models, batch: Batch) -> Loss:
        x, t = batch.data["latent"], batch.shifted_times("time")
        assert models.state is not None
        models.state["mean"].lerp_(x.mean(0), 1 - self.momentum)
        z, v = interpolate(x - models.state["mean"], batch.draws.normal("noise", x.shape[1:]), t)
        return mean_squared(models.network(z, t, t, batch.y) - v)


BOOTSTRAP = (
    "bootstrap --init {0}/mfd.safetensors --latents {0}/latents --objective centred --momentum 0.7 --steps 40 "
    "--batch-size 16 --save-every 10 --log-every 10 -o {1}.safetensors"
)


def test_an_objective_with_state_of_its_own(mfkit, chain: Path, tmp_path: Path, monkeypatch) -> None:
    """In the help, on the command line, in the plan of settings; its state is in the checkpoint and resumes."""
    monkeypatch.setitem(OBJECTIVES, "centred", Centred)
    text = mfkit("bootstrap --help").out
    assert "--momentum M" in text and "flow matching of centred latents" in text
    plan = json.loads(mfkit(BOOTSTRAP.format(chain, "x") + " --dry-run").out)["settings"]
    assert plan["objective"] == "centred" and plan["momentum"] == 0.7
    assert mfkit(BOOTSTRAP.format(chain, "whole")).code == 0
    with stopped_once(lambda: checkpoints(tmp_path / "parts.safetensors"), signal.SIGTERM):
        assert mfkit(BOOTSTRAP.format(chain, "parts")).code == 143
    (kept,) = checkpoints(tmp_path / "parts.safetensors")
    assert load_file(kept)["state.mean"].abs().max() > 0
    failed(mfkit(BOOTSTRAP.format(chain, "parts").replace("0.7", "0.6")), 2, "momentum was 0.7, is 0.6")
    assert mfkit(BOOTSTRAP.format(chain, "parts")).code == 0
    whole, parts = (load_file(f"{name}.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@dataclass(frozen=True, kw_only=True)
class ClassMeans(CoupledObjective):
    """The mean latent of a class, of eight generated and eight real ones."""

    heading: ClassVar[str] = "Class means"
    name: ClassVar[str] = "class-means"
    summary: ClassVar[str] = "mean latents of classes"
    stages: ClassVar[tuple[Stage, ...]] = ("bootstrap",)

    @property
    def rows_per_sample(self) -> int:
        return 8

    @property
    def class_group(self) -> int:
        return 8

    def forward_passes(self, stage: Stage) -> float:
        return GRADIENT

    def noise(self, batch: Batch) -> tuple[Tensor, Tensor]:
        z = batch.draws.normal("noise", (8, *batch.latent_shape))
        return z.flatten(0, 1), batch.y.repeat_interleave(8)

    def outputs(self, models: Models, z: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"x": one_step(models, z, y)}

    def loss(self, models: Models, batch: Batch, outputs: dict[str, Tensor], rows: int) -> Loss:
        means = outputs["x"].unflatten(0, (-1, 8)).mean(1)
        return mean_squared(means - batch.data["latent"].mean(1))


def test_an_objective_that_reads_groups_of_a_class(mfkit, chain: Path, monkeypatch) -> None:
    """It gets them, takes pieces by --micro-batch, and learns: nothing else is to be told of it."""
    monkeypatch.setitem(OBJECTIVES, "class-means", ClassMeans)
    command = (
        f"bootstrap --init {chain}/cmt.safetensors --objective class-means --steps 8 --batch-size 32 --log-every 4 "
        "--warmup 0 --learning-rate"
    )
    for name, options in (("whole", "3e-3"), ("pieces", "3e-3 --micro-batch 4"), ("still", "1e-9")):
        done = mfkit(f"{command} {options} -o {name}.safetensors")
        assert done.code == 0, done.err
    whole, pieces, still = (
        [json.loads(line)["mse"] for line in Path(f"{name}.log.jsonl").read_text().splitlines()]
        for name in ("whole", "pieces", "still")
    )
    assert whole[-1] < 0.95 * still[-1] and pieces == pytest.approx(whole, rel=1e-2)
    failed(mfkit(f"{command.replace('32', '20')} 3e-3 -o x.safetensors"), 2, "does not divide by the 8 rows")


class Pointwise(nn.Module):
    """A network that sees one position at a time."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList([nn.Conv2d(config.channels, config.channels, 1)])
        self.label = nn.Embedding(config.num_classes + 1, config.channels)

    def predict(self, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.blocks[0](z) * expand_to(t, z) + self.label(y)[:, :, None, None]


class PointwiseTeacher(Pointwise, Teacher):
    def forward(self, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.predict(z, t, y)


class PointwiseStudent(Pointwise, Student):
    @classmethod
    def from_teacher(cls, teacher: PointwiseTeacher) -> "PointwiseStudent":
        student = cls(teacher.config)
        student.load_state_dict(teacher.state_dict())
        return student

    def forward(self, z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.predict(z, t, y)


def test_an_architecture_of_its_own(mfkit, chain: Path, monkeypatch) -> None:
    sizes = dict(width=8, depth=1, heads=2, head_width=8, head_depth=1, head_heads=2)
    one = Architecture("pointwise", DiTConfig, PointwiseTeacher, PointwiseStudent, {"one": sizes})
    monkeypatch.setitem(ARCHITECTURES, "pointwise", one)
    steps = "--steps 2 --batch-size 16"
    for command in (
        f"train-teacher {chain}/latents --model pointwise:one -o teacher.safetensors {steps}",
        "trajectories --teacher teacher.safetensors -n 16 -o traj --solver-steps 2",
        f"midtrain traj --teacher teacher.safetensors -o cmt.safetensors {steps}",
        f"distill --teacher teacher.safetensors --init cmt.safetensors -o mfd.safetensors {steps} --derivative jvp",
        "sample mfd.safetensors -n 4 -o drawn.npz",
        "flops mfd.safetensors",
        "inspect mfd.safetensors",
    ):
        done = mfkit(command)
        assert done.code == 0, f"{command}\n{done.err}"
    assert isinstance(package.load("mfd.safetensors"), PointwiseStudent)
    failed(mfkit(f"train-teacher {chain}/latents --model nothing:one -o x.safetensors"), 2, "no architecture nothing")
    failed(mfkit(f"train-teacher {chain}/latents --model pointwise:two -o x.safetensors"), 2, "pointwise has one")
