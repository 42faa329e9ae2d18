"""The decoder of an RAE: a ViT from patch tokens to pixels, as diffusers has it; alone also a pipeline component."""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder
from torch import Tensor

from mfkit.models.layers import check_sizes


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of a decoder, its latents (channels, side, side) and its images."""

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
        check_sizes(depth=self.decoder_depth, side=self.side, width=max(self.channels, self.decoder_width))
        if self.side < 1 or self.image_size < 1 or self.image_size % self.side:
            raise ValueError(f"images of {self.image_size} pixels for {self.side} x {self.side} tokens")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return (self.channels, self.side, self.side)


def new_decoder(config: DecoderConfig) -> RAEDecoder:
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


class RAELatentDecoder(ModelMixin, ConfigMixin):
    """An RAE without its encoder: standardised latents to images. Its config has the sizes of a decoder."""

    latent_mean: Tensor
    latent_scale: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    @register_to_config
    def __init__(
        self, image_size: int, channels: int, side: int, decoder_width: int, decoder_depth: int, decoder_heads: int,
        decoder_hidden: int, decoder_positions: bool = False, auto_map: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        """:param auto_map: where diffusers' ``AutoModel`` finds this class."""
        super().__init__()
        config = DecoderConfig(
            image_size=image_size, channels=channels, side=side, decoder_width=decoder_width,
            decoder_depth=decoder_depth, decoder_heads=decoder_heads, decoder_hidden=decoder_hidden,
            decoder_positions=decoder_positions,
        )  # fmt: skip
        self.decoder = new_decoder(config)
        self.register_buffer("latent_mean", torch.zeros(config.latent_shape))
        self.register_buffer("latent_scale", torch.ones(config.latent_shape))
        self.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
        self.register_buffer("pixel_std", torch.ones(3, 1, 1))

    def decode(self, latents: Tensor) -> Tensor:
        """Standardised latents (B, C, H, W) to images (B, 3, S, S) in [0, 1]."""
        features = latents * self.latent_scale + self.latent_mean
        return decode_patches(self.decoder, features, self.pixel_mean, self.pixel_std).clamp(0, 1)
