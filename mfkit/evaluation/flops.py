"""Counting a network's operations, by the operations it runs; no weights are needed."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mfkit.autoencoders.autoencoder import Autoencoder
from mfkit.autoencoders.vae import VAE
from mfkit.models.generator import Architecture, GeneratorKind

RULES = {
    "macs_without_attention": "multiply-adds of all matrix products and convolutions, each counted as one; "
    "attention's two products left out (the rule of the MF-RAE paper)",
    "macs": "the same, with attention's two products",
    "flops": "a multiply-add counted as two, with attention's two products",
}

Flops = dict[str, float]
"""10^9 operations by rule."""

_SD_VAE: dict[str, Any] = dict(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)  # fmt: skip
"""Stable Diffusion's VAE: arguments of diffusers' ``AutoencoderKL``."""
_DIT_XL_2: dict[str, Any] = dict(
    num_attention_heads=16, attention_head_dim=72, num_layers=28, patch_size=2, in_channels=4, out_channels=4
)
"""DiT-XL/2, the network of vanilla mean flow: arguments of diffusers' ``DiTTransformer2DModel``."""


def generator_flops(architecture: Architecture, kind: GeneratorKind, config: Any) -> Flops:
    """One evaluation of a teacher or student for one image."""
    with torch.device("meta"):
        network = architecture.build(kind, config)
        z, t, y = torch.zeros(1, *config.latent_shape), torch.zeros(1), torch.zeros(1, dtype=torch.long)
    times = (t,) if kind == "teacher" else (t, t)
    return _count(lambda: network(z, *times, y))


def decoder_flops(outline: Autoencoder) -> Flops:
    """Decoding one image. :param outline: on the device ``meta``."""
    latents = torch.zeros(1, *outline.config.latent_shape, device="meta")
    return _count(lambda: outline.decode(latents))


def encoder_flops(outline: Autoencoder) -> Flops:
    """Encoding one image, likewise."""
    size = outline.config.image_size
    images = torch.zeros(1, 3, size, size, device="meta")
    return _count(lambda: outline.encode(images))


def vanilla_flops(image_size: int) -> tuple[Flops, Flops]:
    """Generator and decoder of vanilla mean flow (arXiv 2505.13447): DiT-XL/2 on the latents of Stable Diffusion's VAE.

    Its second time embedding, two small products an image, is left out.
    """
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    side = image_size // 8
    with torch.device("meta"):
        network: Any = DiTTransformer2DModel(sample_size=side, **_DIT_XL_2)
        z, t, y = torch.zeros(1, 4, side, side), torch.zeros(1), torch.zeros(1, dtype=torch.long)
        vae = VAE(AutoencoderKL(**_SD_VAE), image_size=image_size)
    return _count(lambda: network(z, timestep=t, class_labels=y)), decoder_flops(vae)


def _count(evaluate: Callable[[], Any]) -> Flops:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        evaluate()
    attention = sum(
        flops
        for operation, flops in counter.get_flop_counts()["Global"].items()
        if "attention" in str(operation) or "bmm" in str(operation)
    )
    flops = counter.get_total_flops()
    return {"macs_without_attention": (flops - attention) / 2e9, "macs": flops / 2e9, "flops": flops / 1e9}
