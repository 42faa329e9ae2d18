"""--fid-every: figures of a generator while it trains, which change nothing of the training; the best is kept."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import failed, stopped_once
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_evaluation import frechet

import mfkit as package
from mfkit.data.latents import open_latents
from mfkit.flow.random import Draws
from mfkit.training.checkpoint import checkpoints

COUNT = 70


@pytest.fixture(autouse=True)
def start(chain: Path, tmp_path: Path) -> None:
    """A student with weights at random, to which labels matter."""
    torch.manual_seed(0)
    with safe_open(chain / "cmt.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        texts = file.metadata()
    changed = {name: value + 0.1 * torch.randn_like(value) for name, value in tensors.items()}
    save_file(changed, tmp_path / "start.safetensors", texts)
    for name in ("rae.safetensors", "latents"):
        (tmp_path / name).symlink_to(chain / name)


def command(chain: Path, name: str, more: str = f" --fid-every 2 --fid-images {COUNT}") -> str:
    return (
        f"bootstrap --init start.safetensors --latents {chain}/latents -o {name}.safetensors --steps 6 "
        f"--batch-size 16 --log-every 3 --learning-rate 1e-2{more}"
    )


def told(path: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["step"]: line["fid"] for line in lines if "fid" in line}


@pytest.fixture
def measured(mfkit, chain: Path, tmp_path: Path) -> dict[int, float]:
    done = mfkit(command(chain, "t"))
    assert done.code == 0 and done.out == "t.safetensors\n", done.err
    return told(tmp_path / "t.log.jsonl")


def test_the_figure_by_hand_and_the_best(chain: Path, tmp_path: Path, measured: dict[int, float]) -> None:
    """Of the average after the last step, which is what the output holds, in one evaluation."""
    assert sorted(measured) == [2, 4, 6]
    network, rae = package.load(tmp_path / "t.safetensors"), package.load(chain / "rae.safetensors")
    z, y = Draws(0, "fid", range(COUNT)).normal("noise", (32, 4, 4)), torch.arange(COUNT) % 10
    with torch.no_grad():
        images = rae.decode(z - network(z, torch.zeros(COUNT), torch.ones(COUNT), y))
        ours = rae.encode((images * 255).round() / 255).mean((2, 3)).numpy()
    latents = open_latents("latents", str(chain / "latents")).dataset
    real = np.stack([latents[index]["latent"].float().mean((1, 2)).numpy() for index in range(len(latents))])
    assert measured[6] == pytest.approx(frechet(ours, real), rel=2e-5)
    best = min(measured, key=measured.__getitem__)
    kept, last = (load_file(tmp_path / name) for name in ("t.best.safetensors", "t.safetensors"))
    assert all(torch.equal(kept[name], last[name]) for name in last) == (best == 6)
    assert isinstance(package.load(tmp_path / "t.best.safetensors"), type(network))


def test_nothing_of_the_training_depends_on_it(mfkit, chain: Path, tmp_path: Path, measured: dict[int, float]) -> None:
    assert mfkit(command(chain, "plain", "")).code == 0
    one, other = load_file(tmp_path / "t.safetensors"), load_file(tmp_path / "plain.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not told(tmp_path / "plain.log.jsonl") and not (tmp_path / "plain.best.safetensors").exists()


def test_a_run_that_was_stopped_goes_on_with_its_best(
    mfkit, chain: Path, tmp_path: Path, measured: dict[int, float]
) -> None:
    (tmp_path / "whole").mkdir()
    for path in tmp_path.glob("t.*"):
        path.rename(tmp_path / "whole" / path.name)
    with stopped_once(lambda: checkpoints(tmp_path / "t.safetensors"), signal.SIGTERM):
        stopped = mfkit(command(chain, "t") + " --save-every 1")
    assert stopped.code == 143, stopped.err
    fewer = command(chain, "t").replace(f"--fid-images {COUNT}", "--fid-images 20")  # their distances are larger
    failed(mfkit(fewer), 2, f"fid_images was {COUNT}, is 20")
    assert mfkit(command(chain, "t") + " --save-every 1").code == 0
    assert told(tmp_path / "t.log.jsonl") == measured
    kept = [load_file(folder / "t.best.safetensors") for folder in (tmp_path, tmp_path / "whole")]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_what_it_needs(mfkit, chain: Path, tmp_path: Path) -> None:
    train = f"midtrain {chain}/traj --teacher {chain}/teacher.safetensors --steps 2 --batch-size 16 --fid-every 2"
    done = mfkit(f"{train} --fid-images 20 -o c.safetensors")  # whose trajectories know the latents by their teacher
    assert done.code == 0 and told(tmp_path / "c.log.jsonl"), done.err
    done = mfkit(f"plot c.log.jsonl {chain}/cmt.log.jsonl -o curves.png")
    assert done.code == 0 and (tmp_path / "curves.png").exists(), done.err
    (tmp_path / "begun.log.jsonl").touch()
    failed(mfkit("plot begun.log.jsonl -o x.png"), 3, "begun.log.jsonl holds no line yet")
    failed(
        mfkit(f"train-teacher {chain}/traj --objective reflow -o r.safetensors --fid-every 2"), 3, "the latents of real"
    )


def test_several_averages_at_once(mfkit, chain: Path, tmp_path: Path) -> None:
    """Each is what a run with that decay alone writes; all are measured, and the best of them is kept."""
    more = f" --ema 0.5,0.9,0.1 --fid-every 6 --fid-images {COUNT}"
    assert mfkit(command(chain, "t", more)).code == 0
    for decay in (0.9, 0.1):
        assert mfkit(command(chain, "alone", f" --ema {decay} --overwrite")).code == 0
        one, other = load_file(tmp_path / f"t.ema-{decay}.safetensors"), load_file(tmp_path / "alone.safetensors")
        assert all(torch.equal(one[name], other[name]) for name in one)
    lines = [json.loads(line) for line in (tmp_path / "t.log.jsonl").read_text().splitlines()]
    names = ("fid", "fid.0.9", "fid.0.1")
    found = {(line["step"], name): line[name] for line in lines if "fid" in line for name in names}
    step, best = min(found, key=found.__getitem__)
    assert step == 6 and found[step, best] < found[6, "fid"]
    kept = load_file(tmp_path / "t.best.safetensors")
    name = "t.safetensors" if best == "fid" else f"t.ema-{best.removeprefix('fid.')}.safetensors"
    expected = load_file(tmp_path / name)
    assert all(torch.equal(kept[name], expected[name]) for name in kept)
    with stopped_once(lambda: checkpoints(tmp_path / "cut.safetensors"), signal.SIGTERM):
        assert mfkit(command(chain, "cut", more) + " --save-every 1").code == 143
    assert mfkit(command(chain, "cut", more)).code == 0
    one, other = (load_file(tmp_path / f"{name}.ema-0.9.safetensors") for name in ("t", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
