"""Diffusers' ``AutoencoderKL`` with the interface of an RAE, for latents of a VAE such as Stable Diffusion's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from mfkit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The images and latents of a VAE, which itself takes images of many sizes."""

    image_size: int
    channels: int
    side: int

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return (self.channels, self.side, self.side)


_SIZES = (
    "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block",
    "act_fn", "latent_channels", "norm_num_groups", "scaling_factor", "shift_factor", "use_quant_conv",
    "use_post_quant_conv", "mid_block_add_attention",
)  # fmt: skip
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of an attention's layers in VAEs that early versions of diffusers saved."""


def build_vae(config: Mapping[str, Any]) -> AutoencoderKL:
    """The network that a config describes, with fresh weights; nothing else that diffusers may read in one counts."""
    return AutoencoderKL(**{name: config[name] for name in _SIZES if name in config})


def current_name(name: str) -> str:
    """The name that diffusers has now for a tensor of a VAE."""
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new) if ".attentions." in name else name
    return name


class VAE(nn.Module):
    """Frozen. Latents are the posterior's mean, shifted and scaled as the VAE's own config says."""

    def __init__(self, network: Any, *, image_size: int | None = None, side: int | None = None) -> None:
        """:param network: an ``AutoencoderKL``. :param image_size: side of the images; or ``side``, of the latents."""
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        if not network.config.scaling_factor:
            raise ValueError("a VAE without a scaling factor")
        factor = 2 ** (len(network.config.block_out_channels) - 1)
        image_size = image_size or factor * (side or 0)
        if not image_size or image_size % factor:
            raise InputError(f"the VAE shrinks images {factor} times, which does not divide {image_size} pixels")
        self.config = VAEConfig(
            image_size=image_size, channels=network.config.latent_channels, side=image_size // factor
        )

    @property
    def device(self) -> torch.device:
        return self.network.device

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to latents (B, C, H, W)."""
        mean = self.network.encode(2 * images - 1).latent_dist.mode()
        return (mean - self._shift) * self.network.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) to images (B, 3, S, S) in [0, 1]."""
        pixels = self.network.decode(latents / self.network.config.scaling_factor + self._shift).sample
        return (pixels / 2 + 0.5).clamp(0, 1)

    @property
    def _shift(self) -> float:
        return self.network.config.shift_factor or 0.0
