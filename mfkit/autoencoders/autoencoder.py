"""What every autoencoder is: images to latents and back, opened from its own kind of file."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mfkit.artifacts.artifact import Artifact
from mfkit.config.presets import PresetName
from mfkit.errors import InputError


class Autoencoder(nn.Module):
    """A network from images to latents and back."""

    config: Any
    """It has ``image_size``, the side of its images in pixels, and ``latent_shape``, (C, H, W)."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to latents (B, C, H, W), standardised or scaled."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) to images (B, 3, S, S) in [0, 1]."""
        raise NotImplementedError


class AutoencoderFile(ABC):
    """An opened file or folder of an autoencoder; its weights are read when it is loaded."""

    kind: ClassVar[str]
    """As provenance records it."""
    artifact: Artifact
    preset: PresetName | None = None
    """The preset that it passes on."""
    image_size: int | None = None
    """Side of its images in pixels; None where it takes any."""
    layers: Sequence[int] | None = None
    """Layers of an RAE's encoder whose mean its latents are; empty where they are of the last alone."""

    @property
    def path(self) -> Path:
        return self.artifact.path

    @property
    def latents_of(self) -> str:
        """Digest of the autoencoder whose latents it has: another one's where its decoder alone was trained anew."""
        return self.artifact.digest

    @classmethod
    @abstractmethod
    def matches(cls, path: Path) -> bool:
        """Whether a file or folder is of this kind, by a look at its name or its config."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path) -> Self:
        """Reads what it says of itself."""

    @abstractmethod
    def decodes(self, latent_shape: tuple[int, ...]) -> str:
        """Empty where it decodes latents of a shape (C, H, W); else what it decodes."""

    @abstractmethod
    def load(self, *, latent_shape: tuple[int, ...] | None = None, image_size: int | None = None) -> Autoencoder:
        """The network, frozen, on the CPU. One that takes many sizes needs its latents' or its images'."""

    @abstractmethod
    def outline(self, latent_shape: tuple[int, ...]) -> Autoencoder:
        """The network without weights, on the device ``meta``, to count its operations."""

    @abstractmethod
    def pipeline_decoder(self, network: Autoencoder) -> Any:
        """The decoder as a component of a diffusers pipeline."""

    def check_decodes(self, latent_shape: tuple[int, ...], generator: Path) -> None:
        """Refuses to decode what a generator makes, where that has another shape."""
        if held := self.decodes(latent_shape):
            raise InputError(
                f"{generator} makes latents of {' x '.join(map(str, latent_shape))}; {self.path} has {held}"
            )
