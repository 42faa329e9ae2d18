"""train-rae: where encoders come from, what is measured, and that decoding inverts encoding."""

import json
from pathlib import Path

import timm
import torch
from conftest import failed
from timm.models import save_for_hf

import mfkit as package
from mfkit.artifacts.artifact import open_artifact
from mfkit.data.images import open_images


def test_latents_are_standardised_over_the_training_images(chain: Path) -> None:
    rae = package.load(chain / "rae.safetensors")
    source = open_images("digits:train", 32)
    images = torch.stack([source[i]["image"] for i in range(len(source))]).float() / 255
    features = rae.features(images).double()
    assert torch.allclose(rae.latent_mean.double(), features.mean(0), atol=1e-5)
    assert torch.allclose(rae.latent_var.double(), features.var(0, correction=0), rtol=1e-3, atol=1e-7)
    variance = rae.encode(images).var(0, correction=0)  # below 1 by the floor of 1e-5 alone
    assert torch.allclose(variance, rae.latent_var / (rae.latent_var + 1e-5), atol=0.02)


def test_shards_hold_what_the_encoder_gives(chain: Path) -> None:
    from mfkit.data.latents import open_latents

    rae, source = package.load(chain / "rae.safetensors"), open_images("digits:train", 32)
    data = open_latents("latents", str(chain / "latents"))
    assert data.shape == rae.config.latent_shape and len(data.dataset) == 1500
    for i in (0, 399, 400, 1499):
        expected = rae.encode(source[i]["image"][None].float() / 255)[0]
        assert torch.allclose(data.dataset[i]["latent"].float(), expected, rtol=1e-3, atol=1e-3)
        assert data.dataset[i]["label"] == source[i]["label"]


def test_training_the_decoder_lowers_its_error(mfkit, chain: Path, tmp_path: Path) -> None:
    """With the encoder of a file, frozen, which must not change."""
    command = f"train-rae digits:train --encoder {chain}/rae.safetensors -o rae.safetensors --steps 40 --log-every 10"
    assert mfkit(command).code == 0
    errors = [json.loads(line)["mse"] for line in (tmp_path / "rae.log.jsonl").read_text().splitlines()]
    assert errors[-1] < 0.7 * errors[0]
    ours, given = (package.load(folder / "rae.safetensors") for folder in (tmp_path, chain))
    for name, value in given.encoder.state_dict().items():
        assert torch.equal(ours.encoder.state_dict()[name], value)
    assert set(open_artifact(tmp_path / "rae.safetensors").inputs) == {"images", "encoder"}


def test_an_encoder_from_a_local_copy_of_timms_weights(mfkit, tmp_path: Path) -> None:
    """With its own mean and std, and position embeddings resized to the images."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=224)
    save_for_hf(model, tmp_path / "hub", model_config={}, safe_serialization=True)
    command = (
        f"train-rae digits:heldout --encoder {tmp_path}/hub/model.safetensors -o rae.safetensors --preset digits "
        "--image-size 32 --encoder-size 64 --steps 1 --batch-size 4"
    )
    result = mfkit(command)
    assert result.code == 0, result.err
    rae = package.load(tmp_path / "rae.safetensors")
    assert tuple(rae.config.encoder_mean) == (0.5, 0.5, 0.5) and rae.config.latent_shape == (192, 4, 4)
    name = "blocks.3.attn.qkv.weight"
    assert torch.equal(rae.encoder.state_dict()[name], model.state_dict()[name])


def test_weights_that_cannot_be_downloaded_are_one_line(mfkit, tmp_path: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    command = "train-rae digits --encoder vit_tiny_patch16_224 --preset imagenet256 -o rae.safetensors"
    failed(mfkit(command), 3, "cannot be downloaded", "--encoder-weights takes a local copy")
