"""Encoders and whole RAEs against transformers and diffusers' AutoencoderRAE, which needs it.

transformers is no dependency, not even of the other tests: where it is installed, diffusers takes seconds longer to
import. `pip install -e '.[parity]'` adds it; CI does so after all else.
"""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from conftest import close, failed

import mfkit as package
from mfkit.artifacts.safetensors_files import read_tensors
from mfkit.autoencoders.encoder import Encoder
from mfkit.autoencoders.timm_encoder import TIMM

transformers = pytest.importorskip("transformers", reason="pip install -e '.[parity]'")


def perturbed(network: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(4)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network.eval()


def encoder(name: str, arguments: dict[str, int], size: int, folder: Path) -> Encoder:
    file = folder / "model.safetensors"
    return TIMM.from_tensors(name, arguments, size, read_tensors(file), file)


SMALL = dict(hidden_size=128, num_attention_heads=2, num_hidden_layers=2)


def test_dinov2_as_transformers_writes_it(tmp_path: Path) -> None:
    """At a size other than its own, so that its positions are resized."""
    torch.manual_seed(0)
    theirs = perturbed(
        transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**SMALL, patch_size=14, image_size=518)
        )
    )
    theirs.save_pretrained(tmp_path)
    arguments = {"embed_dim": 128, "depth": 2, "num_heads": 2}
    ours = encoder("vit_base_patch14_reg4_dinov2", arguments, 56, tmp_path)
    images = torch.randn(2, 3, 56, 56)
    theirs.layernorm = torch.nn.LayerNorm(128, eps=1e-6, elementwise_affine=False)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state[:, 5:]
        close(TIMM.patch_tokens(ours.network, images).flatten(2).mT, expected.double())


@pytest.mark.parametrize("size", [64, 96])
def test_siglip_as_transformers_writes_it(tmp_path: Path, size: int) -> None:
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(**SMALL, intermediate_size=512, patch_size=16, image_size=64)
    theirs = perturbed(transformers.SiglipVisionModel(config))
    theirs.save_pretrained(tmp_path)
    arguments = {"embed_dim": 128, "depth": 2, "num_heads": 2}
    ours = encoder("vit_base_patch16_siglip_256.v2_webli", arguments, size, tmp_path)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        found = theirs(images, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states[-1]
        expected = torch.nn.functional.layer_norm(found, (128,), eps=1e-6)
        close(TIMM.patch_tokens(ours.network, images).flatten(2).mT, expected.double())


@pytest.mark.parametrize(("kind", "patch", "size"), [("dinov2", 14, 56), ("mae", 16, 64)])
def test_the_folder_of_an_autoencoder_rae(mfkit, tmp_path: Path, kind: str, patch: int, size: int) -> None:
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderRAE(
        encoder_type=kind, encoder_hidden_size=128, encoder_patch_size=patch, encoder_num_hidden_layers=2,
        decoder_hidden_size=64, decoder_num_hidden_layers=2, decoder_num_attention_heads=4,
        decoder_intermediate_size=96, patch_size=8, encoder_input_size=size, scaling_factor=0.5,
        latents_mean=torch.randn(128, 4, 4), latents_std=torch.rand(128, 4, 4) + 0.1,
    )  # fmt: skip
    perturbed(theirs).save_pretrained(tmp_path / "folder")
    done = mfkit("import folder -o rae.safetensors")
    assert done.code == 0, done.err
    rae = package.load(tmp_path / "rae.safetensors")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        latents = theirs.encode(images).latent
        close(rae.encode(images), latents.double())
        close(rae.reconstruct(latents * rae.latent_scale + rae.latent_mean), theirs.decode(latents).sample.double())
    theirs.decoder.load_state_dict(rae.decoder.state_dict())
    failed(mfkit("import folder -o x.safetensors --stats y.pt"), 2, "--stats: of no use")
    failed(mfkit("import folder -o x.safetensors --decoder-heads 4"), 2, "--decoder-heads: of no use")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    for wrong in ({"patch_size": 0}, {"encoder_type": "other"}, {"encoder_num_hidden_layers": "two"}):
        (tmp_path / "folder" / "config.json").write_text(json.dumps(config | wrong))
        failed(mfkit("import folder -o x.safetensors"), 3, "folder")


def test_our_decoder_loads_into_autoencoder_rae(chain: Path) -> None:
    rae = package.load(chain / "rae.safetensors")
    config = rae.config
    theirs = diffusers.AutoencoderRAE(
        encoder_hidden_size=64, encoder_num_hidden_layers=1, decoder_hidden_size=config.decoder_width,
        decoder_num_hidden_layers=config.decoder_depth, decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=config.decoder_hidden, patch_size=8, encoder_input_size=56,
    )  # fmt: skip
    theirs.decoder.decoder_embed = torch.nn.Linear(config.channels, config.decoder_width)  # no such narrow DINOv2
    theirs.decoder.load_state_dict(rae.decoder.state_dict())
    tokens = torch.randn(2, 16, config.channels)
    assert torch.equal(theirs.decoder(tokens).logits, rae.decoder(tokens).logits)
