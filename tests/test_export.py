"""mfkit export: what diffusers draws from the folder is what mfkit draws from the files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import close, failed
from diffusers import AutoencoderKL
from safetensors.torch import load_file

import mfkit as package
from mfkit.config.settings import SampleSettings
from mfkit.inference.sampler import sampler_of


@pytest.fixture(scope="module")
def folder(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with the chain's student, and a card that holds a measurement."""
    place = tmp_path_factory.mktemp("export")
    from conftest import run

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        fid = run(f"fid {chain}/samples --reference digits:train --features {chain}/rae.safetensors", patch)
        (place / "fid.json").write_text(fid.out)
        done = run(f"export {chain}/mft.safetensors --fid fid.json -o pipeline", patch)
    assert done.code == 0 and done.out == "pipeline\n", done.err
    return place / "pipeline"


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_pipeline_draws_what_sample_draws(folder: Path, chain: Path, steps: int) -> None:
    pipeline = package.MeanFlowPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    labels = [3, 7, 0, 9]
    noise = torch.randn(4, 32, 4, 4, generator=torch.Generator().manual_seed(1))
    drawn = pipeline(class_labels=labels, num_inference_steps=steps, latents=noise, output_type="pt").images
    student, rae = package.load(chain / "mft.safetensors"), package.load(chain / "rae.safetensors")
    with torch.no_grad():
        exact = rae.decode(sampler_of(student, SampleSettings(nfe=steps), time_shift=1.0)(noise, torch.tensor(labels)))
    close(drawn, exact.double())


def test_the_folder_in_a_process_of_its_own(folder: Path) -> None:
    """As the model card says; the same seed gives the same picture."""
    code = (
        "import torch; from mfkit import MeanFlowPipeline\n"
        "p = MeanFlowPipeline.from_pretrained('.'); p.set_progress_bar_config(disable=True)\n"
        "draw = lambda: p(class_labels=5, generator=torch.Generator().manual_seed(3)).images[0]\n"
        "print(type(p).__name__, draw().size, draw().tobytes() == draw().tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "MeanFlowPipeline (32, 32) True"
    assert {"model_index.json", "transformer", "decoder", "scheduler", "README.md"} <= {
        p.name for p in folder.iterdir()
    }


def test_the_transformer_has_the_released_names(folder: Path, chain: Path) -> None:
    held = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    plain = load_file(chain / "mft.safetensors")
    assert {name.removeprefix("network.") for name in held} == plain.keys()
    assert all(torch.equal(held[f"network.{name}"], value) for name, value in plain.items())


def test_labels_and_noise_that_do_not_fit_are_refused(folder: Path) -> None:
    pipeline = package.MeanFlowPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match="0 to 10"):
        pipeline(class_labels=[11])
    with pytest.raises(ValueError, match="1 or more"):
        pipeline(class_labels=[1], num_inference_steps=0)
    with pytest.raises(ValueError, match="expected"):
        pipeline(class_labels=[1], latents=torch.zeros(2, 32, 4, 4))


def test_the_card_says_how_it_was_made_and_measured(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    commands = [line for line in card.splitlines() if line.startswith("mfkit ")]
    names = ["train-rae", "encode", "train-teacher", "trajectories", "midtrain", "distill", "bootstrap"]
    assert [line.split()[1] for line in commands] == names
    measured = json.loads((folder.parent / "fid.json").read_text())
    assert f"Fréchet distance: {measured['frechet_distance']:.4g}" in card
    assert "digits:train" in card and "nfe 1" in card and "seed 0" in card and "images 40" in card


def test_what_cannot_be_exported(mfkit, chain: Path, tmp_path: Path) -> None:
    failed(mfkit(f"export {chain}/teacher.safetensors -o x"), 3, "is a teacher file; expected: student")
    failed(mfkit(f"export {chain}/mft.safetensors --fid {chain}/mft.log.jsonl -o x"), 3, "mft.log.jsonl is damaged")
    drawn = {"samples": {"model_digest": "sha256:other"}, "frechet_distance": 1, "reference": {}}
    (tmp_path / "fid.json").write_text(json.dumps(drawn))
    failed(mfkit(f"export {chain}/mft.safetensors --fid fid.json -o x"), 3, "fid.json is of samples of another model")
    failed(mfkit(f"export {chain}/mft.safetensors --fid gone.json -o x"), 3, "gone.json cannot be read")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    failed(mfkit(f"export {chain}/mft.safetensors -o taken"), 4, "taken exists")
    failed(mfkit(f"export {chain}/mft.safetensors -o taken --overwrite"), 4, "taken is not what mfkit export writes")
    assert (tmp_path / "taken" / "file").read_text() == "mine" and not (tmp_path / "x").exists()


def test_a_pipeline_with_a_vae(mfkit, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=4, scaling_factor=0.2,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    for command in (
        "encode digits:heldout --vae vae --preset digits -o latents",
        "train-mean-flow latents -o mf.safetensors --steps 2 --batch-size 8",
        "export mf.safetensors -o pipeline",
    ):
        done = mfkit(command)
        assert done.code == 0, f"{command}: {done.err}"
    pipeline = package.MeanFlowPipeline.from_pretrained(tmp_path / "pipeline")
    noise = torch.randn(1, 4, 8, 8)
    latents = pipeline(class_labels=2, latents=noise, output_type="latent").images
    image = pipeline(class_labels=2, latents=noise, output_type="pt").images
    with torch.no_grad():
        close(image, (vae.eval().decode(latents / 0.2).sample / 2 + 0.5).clamp(0, 1).double())
