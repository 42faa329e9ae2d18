"""The representation autoencoder (RAE, arXiv 2510.11690): a frozen timm ViT, a ViT decoder, standardised latents."""

from dataclasses import dataclass, field
from typing import Any, Self

import timm
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder
from torch import Tensor, nn

from mfkit.errors import InputError
from mfkit.models.layers import check_sizes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
VARIANCE_FLOOR = 1e-5
_NORM_EPS = 1e-6
"""Of the last norm, where an encoder has none."""


@dataclass(frozen=True, kw_only=True)
class RAEConfig:
    """What it takes to build an RAE. ``encoder`` are the arguments of ``timm.create_model`` besides the name."""

    encoder_name: str
    encoder: dict[str, Any] = field(default_factory=dict)
    encoder_size: int
    """Side of the encoder's input in pixels; images are resized to it, bicubic without antialiasing, as published."""
    encoder_mean: tuple[float, float, float] = IMAGENET_MEAN
    encoder_std: tuple[float, float, float] = IMAGENET_STD
    """Mean and std of the encoder's input, per colour; the decoder's output is un-normalised with the same."""
    image_size: int
    channels: int
    side: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    decoder_hidden: int
    decoder_positions: bool = False
    """The decoder's positions are with its weights, since diffusers makes others for its grid."""

    def __post_init__(self) -> None:
        depth = max(self.decoder_depth, self.encoder.get("depth", 0))
        check_sizes(depth=depth, side=self.side, width=max(self.channels, self.decoder_width))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return (self.channels, self.side, self.side)


class RAE(nn.Module):
    """Frozen encoder, decoder, and the latents' mean and variance over the training images."""

    latent_mean: Tensor
    latent_var: Tensor
    encoder_mean: Tensor
    encoder_std: Tensor

    def __init__(self, config: RAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = timm.create_model(
            config.encoder_name, pretrained=False, num_classes=0, img_size=config.encoder_size, **config.encoder
        ).requires_grad_(False)
        patches: Any = self.encoder.patch_embed
        if patches.grid_size != (config.side, config.side):
            raise ValueError(f"an encoder of {patches.grid_size} patches for latents of side {config.side}")
        self.decoder = new_decoder(config)
        self.register_buffer("latent_mean", torch.zeros(config.latent_shape))
        self.register_buffer("latent_var", torch.ones(config.latent_shape))
        for name, values in (("encoder_mean", config.encoder_mean), ("encoder_std", config.encoder_std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.encoder.eval()
        return self

    @property
    def device(self) -> torch.device:
        return self.latent_mean.device

    @property
    def latent_scale(self) -> Tensor:
        """(C, H, W), the standard deviation that latents are divided by."""
        return (self.latent_var + VARIANCE_FLOOR).sqrt()

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to the encoder's patch tokens (B, C, H, W), not standardised."""
        return encode_patches(self.encoder, self.encoder_input(images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to standardised latents (B, C, H, W)."""
        return (self.features(images) - self.latent_mean) / self.latent_scale

    def decode(self, latents: Tensor) -> Tensor:
        """Standardised latents (B, C, H, W) to images (B, 3, S, S) in [0, 1]."""
        return self.reconstruct(latents * self.latent_scale + self.latent_mean).clamp(0, 1)

    def reconstruct(self, features: Tensor) -> Tensor:
        """Patch tokens (B, C, H, W), not standardised, to images (B, 3, S, S), not clamped to [0, 1]."""
        return decode_patches(self.decoder, features, self.encoder_mean, self.encoder_std)

    def forward(self, features: Tensor) -> Tensor:
        """What is trained: :meth:`reconstruct`."""
        return self.reconstruct(features)

    def encoder_input(self, images: Tensor) -> Tensor:
        size = self.config.encoder_size
        if images.shape[-1] != size:
            images = F.interpolate(images, size=(size, size), mode="bicubic")
        return (images - self.encoder_mean) / self.encoder_std


def new_decoder(config: RAEConfig) -> RAEDecoder:
    """A decoder with fresh weights."""
    decoder = RAEDecoder(
        hidden_size=config.channels,
        decoder_hidden_size=config.decoder_width,
        decoder_num_hidden_layers=config.decoder_depth,
        decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=config.decoder_hidden,
        num_patches=config.side**2,
        patch_size=config.image_size // config.side,
        image_size=config.image_size,
    )
    if config.decoder_positions:  # diffusers spaces them so that a side is 16; released decoders hold theirs, 1 apart
        decoder.register_buffer("decoder_pos_embed", decoder.get_buffer("decoder_pos_embed"))
    return decoder


def decode_patches(decoder: RAEDecoder, features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Patch tokens (B, C, H, W), not standardised, to images (B, 3, S, S), not clamped to [0, 1].

    :param mean: (3, 1, 1), that of the encoder's input; likewise ``std``.
    """
    patches = decoder(features.flatten(2).transpose(1, 2)).logits
    return decoder.unpatchify(patches) * std + mean


def encode_patches(encoder: Any, images: Tensor) -> Tensor:
    """The last block's patch tokens (B, C, H, W) after a layer norm WITHOUT affine weights; no prefix tokens."""
    (tokens,) = encoder.forward_intermediates(images, indices=1, intermediates_only=True, output_fmt="NLC")
    # Some ViTs normalise after pooling only.
    norms = [getattr(encoder, name, None) for name in ("norm", "fc_norm")]
    eps: float = next((value for norm in norms if (value := getattr(norm, "eps", None))), _NORM_EPS)
    tokens = F.layer_norm(tokens, tokens.shape[-1:], eps=eps)
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise InputError(f"the encoder gives {tokens.shape[1]} patch tokens, which is no square grid")
    return tokens.transpose(1, 2).unflatten(2, (side, side))
