"""What a frozen vision encoder is, and the library that builds it by name."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mfkit.artifacts.artifact import Artifact
from mfkit.errors import decoding_errors

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EncoderLibrary(Protocol):
    """Where encoders come from, such as timm. One is a file of its own and a line in :mod:`.encoders`."""

    name: str

    def check(self, model: str, arguments: dict[str, Any]) -> None:
        """Refuses a model or arguments that the file of a stranger may not ask for.

        :raises ValueError: it does.
        """

    def build(self, model: str, arguments: dict[str, Any], size: int) -> nn.Module:
        """The encoder with fresh weights for square images of ``size`` pixels."""

    def patch_size(self, model: str, arguments: dict[str, Any]) -> int:
        """Side of its patches in pixels.

        :raises UsageError: it is no encoder of square patches.
        """

    def image_size(self, model: str) -> int:
        """Side in pixels of the images that a model was made for."""

    def patch_tokens(self, network: Any, images: Tensor, layers: Sequence[int] = ()) -> Tensor:
        """Normalised images (B, 3, S, S) to the last layer's patch tokens (B, C, H, W), layer-normalised without affine
        weights, and without class or register tokens.

        :param layers: numbers of those whose mean is taken instead, each normalised.
        """

    def layer_tokens(self, network: Any, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The patch tokens (B, C, H, W) of some layers as they are."""

    def depth(self, network: Any) -> int:
        """How many layers it has."""

    def open(self, model: str, size: int, weights: Path | None) -> "Encoder":
        """A pre-trained encoder: with published weights, or those of a local file."""


def quarters(depth: int) -> list[int]:
    """The last layer of each quarter of so many, counted from 0; fewer than four of fewer layers."""
    return sorted({max(0, depth * (quarter + 1) // 4 - 1) for quarter in range(4)})


@dataclass(frozen=True)
class Encoder:
    """A vision encoder with its weights, and how to build it again."""

    library: EncoderLibrary
    name: str
    arguments: dict[str, Any]
    """Of the library's constructor, besides the size."""
    size: int
    """Side of its input in pixels."""
    network: nn.Module
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    source: Artifact | None = None
    """The file that the weights are from."""
    layers: list[int] = field(default_factory=list)
    """Whose mean its latents are; empty is the last."""
    statistics: tuple[Tensor, Tensor] | None = None
    """Mean and variance (C, H, W) of its latents, of an encoder that is an RAE's."""

    @torch.no_grad()
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what it makes of an image."""
        with decoding_errors(self.name):
            images = torch.zeros(1, 3, self.size, self.size)
            tokens = self.library.patch_tokens(self.network, images, self.layers)
        return (tokens.shape[1], tokens.shape[2], tokens.shape[3])
