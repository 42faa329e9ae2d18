"""mfkit export --format onnx: onnxruntime draws from one file what PyTorch draws from two."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import close, failed, run

onnx = pytest.importorskip("onnx", reason="pip install -e '.[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[onnx]'")

import mfkit as package  # noqa: E402
from mfkit.artifacts.artifact import open_artifact  # noqa: E402
from mfkit.config.settings import SampleSettings  # noqa: E402
from mfkit.flow.random import Draws  # noqa: E402
from mfkit.inference.sampler import sampler_of  # noqa: E402


def drawn(file: Path, noise: torch.Tensor, labels: list[int]) -> torch.Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.tensor(session.run(None, {"noise": noise.numpy(), "labels": np.array(labels)})[0])


@pytest.fixture(scope="module")
def graph(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the chain's student."""
    place = tmp_path_factory.mktemp("onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        done = run(f"export {chain}/mft.safetensors --format onnx --steps 2 -o mft.onnx", patch)
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["bytes"] == (place / "mft.onnx").stat().st_size and 0 < said["largest_difference"] < 1e-4
    return place / "mft.onnx"


@pytest.mark.parametrize("labels", [[3], [7, 0, 9], list(range(10)) * 3])
def test_the_graph_draws_what_sample_draws_in_any_batch(graph: Path, chain: Path, labels: list[int]) -> None:
    noise = torch.randn(len(labels), 32, 4, 4, generator=torch.Generator().manual_seed(1))
    student, rae = package.load(chain / "mft.safetensors"), package.load(chain / "rae.safetensors")
    with torch.no_grad():
        exact = rae.decode(sampler_of(student, SampleSettings(nfe=2), time_shift=1.0)(noise, torch.tensor(labels)))
    close(drawn(graph, noise, labels), exact.double())


def test_a_head_that_sees_r_and_the_decoder_of_a_vae(mfkit, chain: Path, tmp_path: Path) -> None:
    """Are drawn as PyTorch draws, too."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=4, sample_size=32,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    for command in (
        f"midtrain {chain}/traj --teacher {chain}/teacher.safetensors --late-r --steps 2 -o late.safetensors",
        "encode digits:heldout --vae vae --preset digits -o latents",
        "train-mean-flow latents -o vae.safetensors --steps 2 --batch-size 8",
    ):
        done = mfkit(command)
        assert done.code == 0, done.err
    for name in ("late", "vae"):
        done = mfkit(f"export {name}.safetensors --format onnx -o {name}.onnx")
        assert done.code == 0, done.err
        sampled = mfkit(f"sample {name}.safetensors -n 3 --seed 4 --labels 3,7,0 -o {name}.npz")
        assert sampled.code == 0, sampled.err
        shape = package.load(f"{name}.safetensors").config.latent_shape
        noise = Draws(4, "sample", range(3)).normal("noise", shape)
        with np.load(f"{name}.npz") as held:
            pictures = held["arr_0"].transpose(0, 3, 1, 2)
        found = 255 * drawn(tmp_path / f"{name}.onnx", noise, [3, 7, 0]).numpy()
        assert abs(found - pictures).max() < 0.6  # which are rounded


def test_what_the_graph_says_of_itself(graph: Path, chain: Path) -> None:
    model = onnx.load(graph)
    onnx.checker.check_model(model)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["classes"]) == [str(label) for label in range(10)] and said["steps"] == "2"
    assert said["image_size"] == "32" and said["digest"] == open_artifact(chain / "mft.safetensors").digest
    assert json.loads(said["provenance"])["command"].startswith("mfkit bootstrap")
    assert said["license"] == "none is given" and "--seed S" in said["seeds"]
    assert b"site-packages" not in graph.read_bytes()  # no traces of the machine that wrote it


def test_smaller_weights_and_what_they_lose(mfkit, graph: Path, chain: Path, tmp_path: Path) -> None:
    noise = torch.randn(4, 32, 4, 4, generator=torch.Generator().manual_seed(1))
    for weights, share, error in (("float16", 0.6, 5e-3), ("int8", 0.4, 0.1)):
        done = mfkit(
            f"export {chain}/mft.safetensors --format onnx --steps 2 --weights {weights} "
            f"--license mit -o {weights}.onnx"
        )
        assert done.code == 0, done.err
        file, said = tmp_path / f"{weights}.onnx", json.loads(done.out)
        assert "mit" in {entry.value for entry in onnx.load(file).metadata_props if entry.key == "license"}
        assert file.stat().st_size < share * graph.stat().st_size
        exact = drawn(graph, noise, [3, 7, 0, 9])
        difference = (drawn(file, noise, [3, 7, 0, 9]) - exact).abs()
        assert 0 < difference.max() < error and said["largest_difference"] < error
        assert difference.mean() < 3 * said["mean_difference"]


def test_what_cannot_be_written(mfkit, chain: Path, tmp_path: Path) -> None:
    failed(mfkit(f"export {chain}/teacher.safetensors --format onnx -o x.onnx"), 3, "is a teacher file")
    failed(mfkit(f"export {chain}/mft.safetensors --steps 2 -o x"), 2, "--steps is of --format onnx")
    failed(
        mfkit(f"export {chain}/mft.safetensors --format onnx --variants fp16 -o x"), 2, "--variants is of --format d"
    )
    (tmp_path / "taken.onnx").write_text("mine")
    failed(mfkit(f"export {chain}/mft.safetensors --format onnx -o taken.onnx"), 4, "taken.onnx exists")
    assert (tmp_path / "taken.onnx").read_text() == "mine" and not (tmp_path / "x.onnx").exists()
    (tmp_path / "new.onnx.data").write_text("mine")
    failed(mfkit(f"export {chain}/mft.safetensors --format onnx -o new.onnx"), 4, "new.onnx.data exists")
    assert (tmp_path / "new.onnx.data").read_text() == "mine"
    failed(mfkit(f"export {chain}/mft.safetensors --format onnx -o graph"), 2, "must end in .onnx")
