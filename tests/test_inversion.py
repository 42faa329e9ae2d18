"""Latents to their noise and back, and pictures drawn anew from it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import failed

from mfkit.data.dataset import read_batch
from mfkit.data.latents import open_latents


def columns(kind: str, folder: str, count: int) -> dict[str, torch.Tensor]:
    return read_batch(open_latents(kind, folder).dataset, range(count))


def test_latents_go_to_noise_and_back(mfkit, chain: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The states end at the latents, at their times; finer steps miss them by less on the way back."""
    command = f"trajectories --teacher {chain}/teacher.safetensors --from {chain}/latents -n 10 --shard-size 5"
    missed = []
    for steps in (8, 16):
        caplog.clear()
        done = mfkit(f"{command} --solver-steps {steps} --solver heun --dtype float32 -o by{steps}")
        assert done.code == 0, done.err
        missed.append(float(caplog.text.split("miss themselves by ")[1].split()[0]))
    assert missed[0] / missed[1] > 2.5  # of second order
    latents, found = columns("latents", f"{chain}/latents", 10), columns("trajectories", "by16", 10)
    assert torch.equal(found["states"][:, -1], latents["latent"].float())
    assert torch.equal(found["label"], latents["label"])
    assert found["times"][0, 0] == 1 and found["times"][0, -1] == 0
    done = mfkit(f"midtrain by8 --teacher {chain}/teacher.safetensors --steps 1 --batch-size 8 -o s.safetensors")
    assert done.code == 0, done.err

    sample = f"-n 10 --noise by16 --rae {chain}/rae.safetensors"
    for name, model in (("teacher", "teacher.safetensors --nfe 31 --solver heun"), ("mft", "mft.safetensors")):
        done = mfkit(f"sample {chain}/{model} {sample} -o {name}.npz")
        assert done.code == 0, done.err
        drawn = np.load(f"{name}.npz")
        assert drawn["arr_1"].tolist() == latents["label"].tolist()
        assert json.loads(str(drawn["conditions"]))["labels"] == "those of the noise"
    from mfkit.autoencoders.files import open_autoencoder

    rae = open_autoencoder(chain / "rae.safetensors").load()
    real = (rae.decode(latents["latent"].float()).clamp(0, 1) * 255).round()
    redrawn = torch.from_numpy(np.load("teacher.npz")["arr_0"]).permute(0, 3, 1, 2).float()
    assert (redrawn - real).abs().mean() < 1

    failed(mfkit(f"sample {chain}/mft.safetensors {sample} --labels 0 -o x.npz"), 2, "labels of its own")
    failed(mfkit(f"sample {chain}/mft.safetensors {sample} --seed 1 -o x.npz"), 2, "--seed draws noise")
    failed(mfkit(f"{command} --seed 1 -o x"), 2, "--seed draws noise")
    failed(
        mfkit(f"sample {chain}/mft.safetensors {sample.replace('10', '11')} -o x.npz"), 2, "a folder of 11 trajectories"
    )
