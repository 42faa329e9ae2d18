"""The decoder of an exported pipeline, as an autoencoder that decodes alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from mfkit.artifacts.artifact import Artifact, open_artifact
from mfkit.artifacts.json_files import parse
from mfkit.artifacts.network_weights import build_for, load_weights
from mfkit.artifacts.safetensors_files import read_tensors
from mfkit.autoencoders.autoencoder import Autoencoder, AutoencoderFile
from mfkit.autoencoders.rae_decoder import DecoderConfig, RAELatentDecoder
from mfkit.errors import UsageError, decoding_errors
from mfkit.formats import diffusers_folder

KIND = "decoder"
"""Of its file of weights."""


@dataclass(frozen=True, kw_only=True)
class _Description:
    network: DecoderConfig
    rae: str
    """Digest of the RAE that it is of, and whose place it takes."""
    latents_of: str
    """Digest of the RAE whose latents it decodes."""


class Decoder(Autoencoder):
    """An RAE's decoder. Frozen."""

    def __init__(self, config: DecoderConfig, network: RAELatentDecoder) -> None:
        super().__init__()
        self.config, self.network = config, network.requires_grad_(False).eval()

    def encode(self, images: Tensor) -> Tensor:
        raise UsageError("an exported pipeline has a decoder alone; pass --rae, an RAE's file, to encode")

    def decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents)


class DecoderFile(AutoencoderFile):
    """An opened folder of a decoder that ``mfkit export`` wrote."""

    kind: ClassVar[str] = "rae"

    def __init__(self, artifact: Artifact, description: _Description, weights: Path) -> None:
        self.artifact, self._description, self._weights = artifact, description, weights
        self.image_size = description.network.image_size

    @classmethod
    def matches(cls, path: Path) -> bool:
        return path.is_dir() and diffusers_folder.class_name(path) == RAELatentDecoder.__name__

    @classmethod
    def open(cls, path: Path) -> Self:
        _, weights = diffusers_folder.open_folder(path, RAELatentDecoder.__name__)
        description = parse(_Description, open_artifact(weights, kinds=(KIND,)).config, weights)
        return cls(Artifact(path, cls.kind, {}, content_digest=description.rae), description, weights)

    @property
    def latents_of(self) -> str:
        return self._description.latents_of

    def decodes(self, latent_shape: tuple[int, ...]) -> str:
        own = self._description.network.latent_shape
        return "" if own == tuple(latent_shape) else " x ".join(map(str, own))

    def load(self, *, latent_shape: tuple[int, ...] | None = None, image_size: int | None = None) -> Decoder:
        header = open_artifact(self._weights).header
        assert header is not None
        network = build_for(self._new, header.shapes, self._weights)
        load_weights(network, read_tensors(self._weights), self._weights)
        return Decoder(self._description.network, network)

    def outline(self, latent_shape: tuple[int, ...]) -> Decoder:
        with decoding_errors(self.path), torch.device("meta"):
            return Decoder(self._description.network, self._new())

    def pipeline_decoder(self, network: Autoencoder) -> Any:
        assert isinstance(network, Decoder)
        return network.network

    def _new(self) -> RAELatentDecoder:
        return RAELatentDecoder(**vars(self._description.network))
