"""The representation autoencoder (RAE, arXiv 2510.11690): a frozen ViT, a ViT decoder, standardised latents."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mfkit.artifacts.artifact import Artifact, Provenance, open_artifact
from mfkit.artifacts.json_files import parse
from mfkit.artifacts.network_weights import build_for, load_weights, save_network, shapes_of
from mfkit.artifacts.safetensors_files import read_tensors
from mfkit.autoencoders.autoencoder import Autoencoder, AutoencoderFile
from mfkit.autoencoders.encoder import IMAGENET_MEAN, IMAGENET_STD, Encoder, quarters
from mfkit.autoencoders.encoders import DEFAULT, LIBRARIES
from mfkit.autoencoders.rae_decoder import DecoderConfig, RAELatentDecoder, decode_patches, new_decoder
from mfkit.config.presets import PresetName
from mfkit.errors import UsageError

VARIANCE_FLOOR = 1e-5


@dataclass(frozen=True, kw_only=True)
class RAEConfig(DecoderConfig):
    """What it takes to build an RAE. ``encoder`` are the arguments of the library's constructor besides the name."""

    encoder_library: str = DEFAULT
    encoder_name: str
    encoder: dict[str, Any] = field(default_factory=dict)
    encoder_size: int
    """Side of the encoder's input in pixels; images are resized to it, bicubic without antialiasing, as published."""
    encoder_mean: tuple[float, float, float] = IMAGENET_MEAN
    encoder_std: tuple[float, float, float] = IMAGENET_STD
    """Mean and std of the encoder's input, per colour; the decoder's output is un-normalised with the same."""
    encoder_layers: list[int] = field(default_factory=list)
    """Numbers of the layers whose mean, each normalised, the latents are (RAEv2, arXiv 2605.18324); empty: the last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_library not in LIBRARIES:
            raise ValueError(f"an encoder of the library {self.encoder_library}")
        LIBRARIES[self.encoder_library].check(self.encoder_name, self.encoder)
        if self.encoder_layers != sorted({layer for layer in self.encoder_layers if layer >= 0}):
            raise ValueError(f"layers {self.encoder_layers}: give each once, from 0 on, in order")


class RAE(Autoencoder):
    """Frozen encoder, decoder, and the latents' mean and variance over the training images."""

    latent_mean: Tensor
    latent_var: Tensor
    encoder_mean: Tensor
    encoder_std: Tensor

    def __init__(self, config: RAEConfig) -> None:
        super().__init__()
        self.config = config
        self._library = LIBRARIES[config.encoder_library]
        self.encoder = self._library.build(config.encoder_name, config.encoder, config.encoder_size)
        self.encoder.requires_grad_(False)
        depth = self._library.depth(self.encoder)
        if config.encoder_layers and config.encoder_layers[-1] >= depth:
            raise ValueError(f"layer {config.encoder_layers[-1]} of an encoder of {depth}, which count from 0")
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
    def latent_scale(self) -> Tensor:
        """(C, H, W), the standard deviation that latents are divided by."""
        return (self.latent_var + VARIANCE_FLOOR).sqrt()

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to the encoder's patch tokens (B, C, H, W), not standardised."""
        return self._library.patch_tokens(self.encoder, self.encoder_input(images), self.config.encoder_layers)

    def quarter_layers(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, S, S) in [0, 1] to the tokens (B, C, H, W) of the last layer of each quarter of the encoder."""
        layers = quarters(self._library.depth(self.encoder))
        return self._library.layer_tokens(self.encoder, self.encoder_input(images), layers)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to standardised latents (B, C, H, W), without a gradient."""
        return self.standardised(images)

    def standardised(self, images: Tensor) -> Tensor:
        """The same with a gradient."""
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
        """Images (B, 3, S, S) in [0, 1], resized and normalised for the encoder."""
        size = self.config.encoder_size
        if images.shape[-1] != size:
            images = F.interpolate(images, size=(size, size), mode="bicubic")
        return (images - self.encoder_mean) / self.encoder_std


def assemble(
    encoder: Encoder, decoder: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None, file: Path | None = None
) -> RAE:
    """An RAE of this encoder, and a decoder that is fresh or has these weights.

    :param decoder: the fields of an :class:`RAEConfig` beside the encoder's.
    :param tensors: of the decoder; ``file``: where they are from.
    """
    fields = {
        "encoder_library": encoder.library.name, "encoder_name": encoder.name, "encoder": encoder.arguments,
        "encoder_size": encoder.size, "encoder_mean": list(encoder.mean), "encoder_std": list(encoder.std),
        "encoder_layers": encoder.layers, **decoder,
    }  # fmt: skip
    config = parse(RAEConfig, fields, file or encoder.name)
    if tensors is not None:
        build_for(lambda: new_decoder(config), shapes_of(tensors), file)
    rae = RAE(config)
    rae.encoder.load_state_dict(encoder.network.state_dict())
    if tensors is not None:
        load_weights(rae.decoder, tensors, file)
    return rae


@dataclass(frozen=True, kw_only=True)
class RAEDescription:
    """What an RAE's file says beside its weights."""

    network: RAEConfig
    class_names: list[str] = field(default_factory=list)
    preset: PresetName | None = None
    latents_of: str = ""
    """Digest of the RAE whose encoder and statistics it has, and so its latents; empty where they are its own."""


class RAEFile(AutoencoderFile):
    """An opened file of an RAE."""

    kind: ClassVar[str] = "rae"

    def __init__(self, artifact: Artifact, description: RAEDescription) -> None:
        self.artifact, self.network_config, self.preset = artifact, description.network, description.preset
        self._latents_of = description.latents_of
        self.image_size, self.layers = description.network.image_size, description.network.encoder_layers

    @classmethod
    def matches(cls, path: Path) -> bool:
        return path.suffix == ".safetensors"

    @classmethod
    def open(cls, path: Path) -> Self:
        artifact = open_artifact(path, kinds=(cls.kind,))
        return cls(artifact, parse(RAEDescription, artifact.config, path))

    def decodes(self, latent_shape: tuple[int, ...]) -> str:
        own = self.network_config.latent_shape
        return "" if own == tuple(latent_shape) else " x ".join(map(str, own))

    @property
    def latents_of(self) -> str:
        return self._latents_of or self.artifact.digest

    @cached_property
    def network(self) -> RAE:
        """The network with its weights, read once."""
        assert self.artifact.header is not None
        network = build_for(lambda: RAE(self.network_config), self.artifact.header.shapes, self.path)
        load_weights(network, read_tensors(self.path), self.path)
        return network.eval()

    def load(self, *, latent_shape: tuple[int, ...] | None = None, image_size: int | None = None) -> RAE:
        return self.network

    def outline(self, latent_shape: tuple[int, ...]) -> RAE:
        return rae_outline(self.network_config)

    def pipeline_decoder(self, network: Autoencoder) -> RAELatentDecoder:
        assert isinstance(network, RAE)
        config = network.config
        decoder = RAELatentDecoder(**{name: getattr(config, name) for name in DecoderConfig.__dataclass_fields__})
        decoder.decoder.load_state_dict(network.decoder.state_dict())
        decoder.latent_mean.copy_(network.latent_mean)
        decoder.latent_scale.copy_(network.latent_scale)
        decoder.pixel_mean.copy_(network.encoder_mean)
        decoder.pixel_std.copy_(network.encoder_std)
        return decoder

    def encoder(self, size: int) -> Encoder:
        """Its encoder alone, to train another decoder for."""
        config = self.network_config
        if config.encoder_size != size:
            raise UsageError(f"the encoder of {self.path} takes {config.encoder_size} pixels; pass --encoder-size")
        return Encoder(
            LIBRARIES[config.encoder_library], config.encoder_name, config.encoder, size, self.network.encoder,
            config.encoder_mean, config.encoder_std, self.artifact, config.encoder_layers,
            (self.network.latent_mean, self.network.latent_var),
        )  # fmt: skip


def rae_outline(config: RAEConfig) -> RAE:
    """An RAE without weights, on the device ``meta``, to count its operations."""
    with torch.device("meta"):
        return RAE(config)


def save_rae(path: Path, rae: RAE, config: dict[str, Any], provenance: Provenance) -> None:
    """Writes an RAE. All processes call it; the main one writes.

    :param config: the entries of :class:`RAEDescription` beside ``network``.
    """
    save_network(path, rae, RAEFile.kind, asdict(rae.config), config, provenance)
