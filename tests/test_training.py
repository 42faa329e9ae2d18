"""The training loop: resuming, stopping, schedules, and two processes that train as one."""

import json
import re
import shutil
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from conftest import several
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file

from mfkit.artifacts.artifact import file_digest
from mfkit.config import presets
from mfkit.config.settings import (
    AutoencoderSettings,
    EncodeSettings,
    FlowSettings,
    GeneratorSettings,
    TrainingSettings,
    TrajectorySettings,
)
from mfkit.flow.objectives import objectives_of
from mfkit.setting import settings_of
from mfkit.training.checkpoint import checkpoints
from mfkit.training.optimizers import Optimizers
from mfkit.training.train_state import ema_decay, learning_rate

DIVERGING = " --schedule linear --learning-rate 1e-3 --final-learning-rate 1e35 --warmup 4"
TEACHER = (
    "train-teacher {chain}/latents -o t.safetensors --optimizer adamw --steps 6 --batch-size 16 --save-every 2 "
    "--log-every 1"
)


def settings(**changes) -> TrainingSettings:
    return presets.resolve(TrainingSettings, "train-teacher", "digits", changes)


@pytest.mark.fast
def test_learning_rates() -> None:
    plan = settings(steps=100, warmup=10, learning_rate=1.0, final_learning_rate=0.1, schedule="linear")
    assert learning_rate(plan, 0) == pytest.approx(0.1) and learning_rate(plan, 9) == pytest.approx(1.0)
    assert learning_rate(plan, 55) == pytest.approx(0.55) and learning_rate(plan, 100) == pytest.approx(0.1)
    cosine = settings(steps=100, warmup=0, learning_rate=1.0, final_learning_rate=0.0, schedule="cosine")
    assert [learning_rate(cosine, s) for s in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    constant = settings(steps=100, warmup=0, learning_rate=0.3, schedule="constant")
    assert learning_rate(constant, 99) == 0.3


@pytest.mark.fast
@pytest.mark.parametrize(
    ("preset", "stage", "expected"),
    [
        ("imagenet256", "train-rae", dict(steps=16 * 1_281_167 // 512, warmup=1_281_167 // 512, ema=(0.9978,))),
        ("imagenet256", "train-teacher", dict(batch_size=1024, learning_rate=2e-4, ema=(0.9995,), class_dropout=0.1)),
        ("imagenet256", "midtrain", dict(steps=27_000, learning_rate=1e-4, ema=(0.999,), max_grad_norm=1.0)),
        ("imagenet256", "distill", dict(steps=180_000, batch_size=256, learning_rate=1e-4, ema=(0.9999,))),
        ("imagenet256", "train-rae", dict(crop_scale=1.5, image_size=256, perceptual="lpips")),
        ("imagenet512", "distill", dict(steps=20_000, batch_size=128, ema=(0.9995,))),
        ("imagenet512", "bootstrap", dict(steps=10_000, batch_size=128, ema=(0.9995,))),
    ],
)
def test_presets_hold_the_published_figures(preset, stage, expected) -> None:
    kinds = (TrainingSettings, AutoencoderSettings) if stage == "train-rae" else (GeneratorSettings,)
    resolved = {name: value for kind in kinds for name, value in asdict(presets.resolve(kind, stage, preset)).items()}
    assert {name: resolved[name] for name in expected} == expected


@pytest.mark.fast
@pytest.mark.parametrize("preset", ["imagenet256", "imagenet512"])
def test_drifting_has_the_published_figures(preset) -> None:
    settings, drifting = presets.resolve_training("bootstrap", preset, {"objective": "drifting"})
    assert (settings.steps, settings.learning_rate, settings.final_learning_rate) == (10_000, 3e-5, 3e-7)
    assert (settings.ema, settings.ema_warmup, settings.batch_size) == ((0.9995,), 1000, 32 * 64)
    assert (drifting.generated, drifting.extra, drifting.real, drifting.field) == (64, 192, 256, "token")


@pytest.mark.fast
@pytest.mark.parametrize("preset", presets.PRESETS)
def test_a_preset_names_settings_that_its_commands_have(preset: str) -> None:
    """A misspelt name would be left unread."""
    kinds = {
        "train-rae": (TrainingSettings, AutoencoderSettings),
        "encode": (EncodeSettings,),
        "trajectories": (TrajectorySettings,),
    }
    for command, values in presets.PRESETS[preset].commands.items():
        command, _, objective = command.partition(" ")
        objectives = objectives_of(command)
        known = kinds.get(command, (GeneratorSettings, FlowSettings, *objectives.values()))
        assert not values.keys() - {item.name for kind in known for item in settings_of(kind)}
        assert not objective or objective in objectives


@pytest.mark.fast
def test_muon_steps_along_the_polar_factor() -> None:
    """Of the blocks' matrices, adaLN's aside; as long as AdamW's step; by singular values in float64."""
    torch.manual_seed(0)
    modulation = torch.nn.Sequential(OrderedDict(adaLN_modulation=torch.nn.Linear(8, 8)))
    network = torch.nn.Sequential(torch.nn.Linear(8, 24), torch.nn.Linear(24, 8), modulation, torch.nn.Linear(8, 3))
    before = [value.detach().clone() for value in network.parameters()]
    for value in network.parameters():
        value.grad = torch.randn_like(value)
    gradients = [value.grad for value in network.parameters()]
    plan = settings(optimizer="muon", weight_decay=0.0)
    Optimizers(network.parameters(), network[:3], plan).step(0.1)
    steps = [(old - new.detach()) / 0.1 for old, new in zip(before, network.parameters(), strict=True)]
    for index in (0, 2):
        left, _, right = torch.linalg.svd(gradients[index].double(), full_matrices=False)
        polar = left @ right * 0.2 * 24**0.5
        assert torch.cosine_similarity(steps[index].double().flatten(), polar.flatten(), dim=0) > 0.97
        assert float(steps[index].norm() / polar.norm()) == pytest.approx(1, abs=0.2)
    for index in (1, 3, 4, 5, 6, 7):
        torch.testing.assert_close(steps[index], gradients[index].sign(), rtol=1e-4, atol=0)


@pytest.fixture
def uninterrupted(mfkit, chain: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    assert mfkit(TEACHER.format(chain=chain)).code == 0
    weights = load_file(tmp_path / "t.safetensors")
    for path in tmp_path.glob("t.*"):
        path.unlink()
    return weights


def test_micro_batches_do_not_change_the_result(chain: Path, tmp_path: Path, mfkit, uninterrupted) -> None:
    assert mfkit(TEACHER.format(chain=chain) + " --micro-batch 4").code == 0
    assert difference(uninterrupted, load_file(tmp_path / "t.safetensors")) < 1e-5


def test_a_checkpoint_of_other_settings_is_refused(chain: Path, tmp_path: Path, mfkit) -> None:
    command = TEACHER.format(chain=chain)
    spoiled = mfkit(command.replace("--steps 6", "--steps 40") + DIVERGING)
    assert spoiled.code == 5
    (kept,) = checkpoints(tmp_path / "t.safetensors")
    before = file_digest(kept)
    refused = mfkit(command)
    assert refused.code == 2 and "steps was 40, is 6" in refused.err and "--restart" in refused.err
    assert "width was 96, is 384" in mfkit(command + " --model S").err
    assert file_digest(kept) == before
    assert mfkit(command + " --restart").code == 0


def test_divergence_stops_and_keeps_the_last_good_checkpoint(chain: Path, tmp_path: Path, mfkit) -> None:
    """The rate grows without bound during the warm-up, so that the first checkpoints are good."""
    command = TEACHER.format(chain=chain).replace("--steps 6", "--steps 40")
    result = mfkit(command + DIVERGING)
    assert result.code == 5 and "not finite in step 7" in result.err and result.err.count("\n") == 1
    checkpoint = load_file(checkpoints(tmp_path / "t.safetensors")[-1])
    assert all(value.isfinite().all() for value in checkpoint.values())
    assert not (tmp_path / "t.safetensors").exists()


def test_the_weights_are_a_moving_average(chain: Path, tmp_path: Path, mfkit, uninterrupted) -> None:
    assert mfkit(TEACHER.format(chain=chain) + " --ema 0").code == 0
    last = load_file(tmp_path / "t.safetensors")
    assert difference(uninterrupted, last) > 1e-4


def test_the_moving_average_decays_as_that_of_diffusers() -> None:
    parameter = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
    theirs, ours = EMAModel([parameter], decay=0.7), parameter.detach().clone()
    for step in range(40):
        with torch.no_grad():
            parameter += torch.randn(5)
        theirs.step([parameter])
        ours.lerp_(parameter.detach(), 1 - ema_decay(settings(ema=(0.7,)), step))
    torch.testing.assert_close(ours, theirs.shadow_params[0], rtol=1e-12, atol=0)


def test_grids_from_fixed_noise(chain: Path, tmp_path: Path, mfkit) -> None:
    shutil.copytree(chain / "latents", tmp_path / "run" / "latents")
    shutil.copy(chain / "rae.safetensors", tmp_path / "run")
    command = "train-teacher run/latents -o run/t.safetensors --steps 2 --batch-size 8 --sample-every 2"
    assert mfkit(command).code == 0
    from PIL import Image

    with Image.open(tmp_path / "run" / "t.step-0000002.png") as grid:
        assert grid.size == (8 * 66, 10 * 66)


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest distance of any tensor, relative to its norm."""
    return max(float((one[name] - other[name]).norm() / (one[name].norm() + 1e-3)) for name in one)


def launched(processes: int, commands: list[str], folder: Path) -> CompletedProcess[str]:
    """What commands print and say that run one after the other in so many processes."""
    done = several(folder, *commands, processes=processes)
    codes = [path.read_text().split() for path in folder.glob("codes?")]
    assert done.returncode == 0 and codes == processes * [len(commands) * ["0"]], done.stderr
    for path in folder.glob("codes?"):
        path.unlink()
    return done


SHARED = [
    "train-teacher {}/latents -o OUT/t.safetensors --optimizer adamw --steps 3 --batch-size 16 --log-every 1 "
    "--fid-every 3 --fid-images 130",
    "midtrain {}/traj --teacher {}/teacher.safetensors -o OUT/c.safetensors --optimizer adamw --steps 3 "
    "--batch-size 16 --log-every 1",
    "distill --teacher {}/teacher.safetensors --init {}/cmt.safetensors -o OUT/d.safetensors --steps 4 "
    "--batch-size 16 --log-every 1",
    "bootstrap --init {}/mfd.safetensors -o OUT/b.safetensors --steps 3 --batch-size 16 --log-every 1",
    "distill --teacher {}/teacher.safetensors --init {}/cmt.safetensors --objective soflow -o OUT/s.safetensors "
    "--steps 3 --batch-size 16 --log-every 1",
    "bootstrap --init {}/cmt.safetensors --latents {}/latents --objective shortcut -o OUT/h.safetensors --steps 3 "
    "--batch-size 16 --log-every 1",
    "train-rae digits:heldout --encoder tiny -o OUT/rae.safetensors --optimizer adamw --pretrain-steps 2 --steps 2 "
    "--batch-size 16 --log-every 1",
    "train-rae digits:heldout --encoder {}/rae.safetensors -o OUT/a.safetensors --optimizer adamw --steps 4 "
    "--batch-size 16 --micro-batch 8 --log-every 1 --perceptual encoder --discriminator encoder "
    "--discriminator-start 0.25 --crop-scale 1.25",
    "encode digits:heldout --rae {}/rae.safetensors -o OUT/latents --shard-size 60",
    "encode digits:heldout --rae {}/rae.safetensors -o OUT/few --shard-size 1000",
    "trajectories --teacher {}/teacher.safetensors -n 30 -o OUT/traj --solver-steps 3 --shard-size 6",
    "sample {}/mft.safetensors -n 30 -o OUT/samples.npz --batch-size 10",
    "sample {}/mft.safetensors -n 20 -o OUT/images",
    "decode {}/traj -o OUT/decoded",
    "bootstrap --init {}/cmt.safetensors --latents {}/latents --objective drifting --view token --view mean-token "
    "--generated 8 --extra 4 --real 16 --optimizer adamw --batch-size 32 --steps 3 --log-every 1 -o OUT/g.safetensors",
    "bootstrap --init {}/cmt.safetensors --objective frechet --space mean-token --space rae --reference digits:heldout "
    "--moment-samples 50 --batch-size 16 --steps 3 --log-every 1 -o OUT/f.safetensors",
    "bootstrap --init {}/cmt.safetensors --objective frechet --moments queue --moment-samples 50 --batch-size 16 "
    "--steps 3 --micro-batch 2 --log-every 1 -o OUT/q.safetensors",
]
"""Every command that takes several processes, but fid."""
FIGURES = (
    "fid {}/samples --reference digits:heldout --features {}/rae.safetensors,pixels --batch-size 7 "
    "--metrics kid,prdc,diversity --resample 4 --validation digits:train"
)
"""Figures that need sums, and such that need all rows."""


def test_processes_do_what_one_does(chain: Path, tmp_path: Path, mfkit) -> None:
    """Two and four of them against one: losses, weights, bytes of shards and images."""
    commands = [command.replace("{}", str(chain)) for command in SHARED]
    for command in commands:
        assert mfkit(command.replace("OUT", "one")).code == 0
    # With four, what they share otherwise than two do: files, classes, moments.
    folders = {"latents": 5, "few": 1, "traj": 5, "images": 20, "decoded": 64}
    for count, shared, trained, written in (
        (
            2,
            commands,
            ("t", "c", "d", "b", "s", "h", "rae", "a", "g", "f", "q"),
            ("latents", "few", "traj", "images", "decoded"),
        ),
        (4, [command for command in commands if re.search(r"OUT/(latents|g\.|f\.)", command)], "gf", ["latents"]),
    ):
        lines = [command.replace("OUT", f"by{count}") for command in shared]
        done = launched(count, [*lines, FIGURES.replace("{}", str(chain))][: len(lines) + (count == 2)], tmp_path)
        names, _, figures = done.stdout.partition("{")
        assert ("1 shards for 2 processes: some have nothing to do" in done.stderr) == (count == 2)
        assert names.split() == [line.split(" -o ")[1].split()[0] for line in lines]
        if figures:
            together, alone = (
                numbers(json.loads(text)) for text in ("{" + figures, mfkit(FIGURES.replace("{}", str(chain))).out)
            )
            assert together == pytest.approx(alone, rel=1e-6) and len(alone) > 20
        parts = [tmp_path / "one", tmp_path / f"by{count}"]
        for name in trained:
            one, many = (losses(part / f"{name}.log.jsonl") for part in parts)
            assert many == pytest.approx(one, rel=1e-3) and len(one) >= 2  # two writers would log each step twice
            assert difference(*(load_file(part / f"{name}.safetensors") for part in parts)) < 1e-4
        for folder in written:
            held = [
                {path.name: file_digest(path) for path in (part / folder).rglob("*.[tp][an][rg]")} for part in parts
            ]
            assert held[0] == held[1] and len(held[0]) == folders[folder]
    with np.load(tmp_path / "one/samples.npz") as one, np.load(tmp_path / "by2/samples.npz") as two:
        assert all(np.array_equal(one[name], two[name]) for name in ("arr_0", "arr_1", "conditions"))


def losses(path: Path) -> list[float]:
    """And what else is told, all in turn."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line[name] for line in lines for name in ("mse", "fid", "discriminator", "adversarial") if name in line]


def numbers(value: object, name: str = "") -> dict[str, float]:
    """Those in a JSON object, by their places."""
    if isinstance(value, dict):
        return {place: one for key, inner in value.items() for place, one in numbers(inner, f"{name}.{key}").items()}
    return {name: value} if isinstance(value, float) else {}


def test_options_of_execution_change_no_loss(chain: Path, tmp_path: Path, mfkit) -> None:
    command = (
        f"bootstrap --init {chain}/cmt.safetensors --latents {chain}/latents --steps 3 --batch-size 8 --log-every 1 "
        "--derivative jvp -o OUT.safetensors"  # which runs uncompiled: fewer graphs to compile here
    )
    for name, option in (("plain", ""), ("again", " --activation-checkpointing"), ("compiled", " --compile")):
        done = mfkit(command.replace("OUT", name) + option)
        assert done.code == 0, done.err
    plain = losses(tmp_path / "plain.log.jsonl")
    assert losses(tmp_path / "again.log.jsonl") == plain
    assert losses(tmp_path / "compiled.log.jsonl") == pytest.approx(plain, rel=1e-4)
    names = [set(load_file(tmp_path / f"{name}.safetensors")) for name in ("plain", "again", "compiled")]
    assert names[0] == names[1] == names[2]


def test_bf16_takes_the_derivative_in_forward_mode(chain: Path, tmp_path: Path, mfkit) -> None:
    """Its error is that of bfloat16's rounding; the difference quotient of bfloat16 values would be noise."""
    command = (
        f"distill --teacher {chain}/teacher.safetensors --init {chain}/cmt.safetensors --steps 2 --batch-size 8 "
        "--log-every 1 -o OUT.safetensors"
    )
    for name, option in (("exact", " --derivative jvp"), ("bf16", " --precision bf16")):
        assert mfkit(command.replace("OUT", name) + option).code == 0
    exact, rounded = (losses(tmp_path / f"{name}.log.jsonl") for name in ("exact", "bf16"))
    assert rounded == pytest.approx(exact, rel=0.05) and rounded != exact
    plan = json.loads(mfkit(command.replace("OUT", "x") + " --precision bf16 --dry-run").out)
    assert plan["settings"]["derivative"] == "jvp"


def test_weights_split_by_fsdp_train_as_whole_ones(chain: Path, tmp_path: Path, mfkit) -> None:
    """Two processes, accelerate's FSDP, killed and resumed. accelerate offers it on GPUs only, so its state is told."""
    before = (
        "from accelerate import Accelerator, PartialState\n"
        "from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin\n"
        "state = Accelerator(cpu=True, mixed_precision='no').state\n"
        "policy = 'transformer_based_wrap'\n"
        "state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy=policy)\n"
        "PartialState().distributed_type = state.distributed_type = DistributedType.FSDP\n"
        "from mfkit.training import loop, train_state\n"
        "stops = [3]\n"
        "class Watched(train_state.TrainState):\n"
        "    def step(self, number, *rest):\n"
        "        assert self.sharded and type(self.network.blocks[0]).__name__ == 'FSDPBlock'\n"
        "        if number in stops:\n"
        "            raise RuntimeError(f'stopped in step {stops.pop()}')\n"
        "        return super().step(number, *rest)\n"
        "loop.TrainState = Watched\n"
    )
    command = (
        f"distill --teacher {chain}/teacher.safetensors --init {chain}/cmt.safetensors --steps 4 --batch-size 16 "
        "--micro-batch 4 --log-every 1 --save-every 2 --derivative jvp -o OUT.safetensors"
    )
    split = command.replace("OUT", "split")
    keep = "!cp split.checkpoint-0000002.safetensors alone.checkpoint-0000002.safetensors; ls"
    adversary = f"train-rae digits:heldout --encoder {chain}/rae.safetensors --discriminator encoder -o d.safetensors"
    done = several(tmp_path, split, keep, split, adversary, processes=2, before=before)
    codes = [(tmp_path / f"codes{rank}").read_text().split() for rank in (0, 1)]
    assert codes == 2 * [["1", "0", "0", "2"]] and "--discriminator is not trained under FSDP" in done.stderr, (
        done.stderr
    )
    assert "stopped in step 3" in done.stderr and done.stdout.split().count("split.safetensors") == 1
    for name in ("whole", "alone"):  # the second goes on from the checkpoint of the two
        assert mfkit(command.replace("OUT", name)).code == 0
    ends = {name: load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "alone", "split")}
    assert difference(ends["split"], ends["whole"]) < 1e-4 and difference(ends["alone"], ends["whole"]) < 1e-4
    assert len(losses(tmp_path / "alone.log.jsonl")) == 2
    assert losses(tmp_path / "split.log.jsonl") == pytest.approx(losses(tmp_path / "whole.log.jsonl"), rel=1e-3)
