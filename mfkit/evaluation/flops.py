"""Counting a network's work, by the operations it runs; no weights are needed."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mfkit.autoencoders.rae import RAE, RAEConfig
from mfkit.models.dit import AverageVelocityDiT, DiTConfig, VelocityDiT

RULES = {
    "macs_without_attention": "multiply-adds of all matrix products and convolutions, each counted as one; "
    "attention's two products left out (the rule of the MF-RAE paper)",
    "macs": "the same, with attention's two products",
    "flops": "a multiply-add counted as two, with attention's two products",
}

Work = dict[str, float]
"""10^9 operations by rule."""

SD_VAE: dict[str, Any] = dict(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)  # fmt: skip
"""Stable Diffusion's VAE: arguments of diffusers' ``AutoencoderKL``."""
_DIT_XL_2: dict[str, Any] = dict(
    num_attention_heads=16, attention_head_dim=72, num_layers=28, patch_size=2, in_channels=4, out_channels=4
)
"""DiT-XL/2, the network of vanilla mean flow: arguments of diffusers' ``DiTTransformer2DModel``."""


def generator_work(config: DiTConfig, kind: str) -> Work:
    """One evaluation of a teacher or student for one image."""
    with torch.device("meta"):
        network = VelocityDiT(config) if kind == "teacher" else AverageVelocityDiT(config)
        z = torch.zeros(1, config.channels, config.side, config.side)
        times, y = torch.zeros(1), torch.zeros(1, dtype=torch.long)
    return _count(lambda: network(z, *[times] * (1 if kind == "teacher" else 2), y))


def decoder_work(config: RAEConfig) -> Work:
    """Decoding one image."""
    with torch.device("meta"):
        rae = RAE(config)
        features = torch.zeros(1, *config.latent_shape)
    return _count(lambda: rae.reconstruct(features))


def encoder_work(config: RAEConfig) -> Work:
    """Encoding one image."""
    with torch.device("meta"):
        rae = RAE(config)
        image = torch.zeros(1, 3, config.image_size, config.image_size)
    return _count(lambda: rae.features(image))


def vae_decoder_work(config: Mapping[str, Any], side: int) -> Work:
    """Decoding one image from the latents of a diffusers VAE, of ``side`` x ``side``."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        network = AutoencoderKL.from_config(dict(config))
        latents = torch.zeros(1, network.config.latent_channels, side, side)
    return _count(lambda: network.decode(latents))


def vanilla_work(image_size: int) -> tuple[Work, Work]:
    """Generator and decoder of vanilla mean flow (arXiv 2505.13447): DiT-XL/2 on the latents of Stable Diffusion's VAE.

    Its second time embedding, two small products an image, is left out.
    """
    from diffusers import DiTTransformer2DModel

    side = image_size // 8
    with torch.device("meta"):
        network: Any = DiTTransformer2DModel(sample_size=side, **_DIT_XL_2)
        z, t, y = torch.zeros(1, 4, side, side), torch.zeros(1), torch.zeros(1, dtype=torch.long)
    return _count(lambda: network(z, timestep=t, class_labels=y)), vae_decoder_work(SD_VAE, side)


def total(*parts: Work) -> Work:
    return {rule: sum(part[rule] for part in parts) for rule in RULES}


def _count(evaluate: Callable[[], Any]) -> Work:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        evaluate()
    attention = sum(
        flops
        for operation, flops in counter.get_flop_counts()["Global"].items()
        if "attention" in str(operation) or "bmm" in str(operation)
    )
    flops = counter.get_total_flops()
    return {"macs_without_attention": (flops - attention) / 2e9, "macs": flops / 2e9, "flops": flops / 1e9}
