"""A discriminator of decoded pictures: small heads on the layers of a frozen vision transformer (as RAE's stage 1).

The heads are StyleGAN-T's (arXiv 2301.09515), the augmentation is DiffAug's (arXiv 2006.10738).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from mfkit.autoencoders.encoder import Encoder, quarters
from mfkit.flow.random import Draws

_GROUP = 8
"""Pictures whose statistics are normalised together, so that a score does not depend on the batch's size."""
_TRANSLATION = 0.125
"""Largest shift of a picture, as a share of its side."""


class Discriminator(nn.Module):
    """Scores of pictures by place and layer; real ones shall be above 1, decoded ones below -1."""

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: Encoder) -> None:
        super().__init__()
        self._library, self._size = trunk.library, trunk.size
        self.trunk = trunk.network.eval().requires_grad_(False)
        depth = trunk.library.depth(trunk.network)
        self._taps = quarters(depth)
        channels, _, _ = trunk.latent_shape()
        self.heads = nn.ModuleList(_head(channels) for _ in range(len(self._taps) + 1))
        for name, values in (("mean", trunk.mean), ("std", trunk.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "Discriminator":
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] to scores (B, 5 H W): of the quarters' last layers, and of the output."""
        if images.shape[-1] != self._size:
            images = F.interpolate(images, size=(self._size, self._size), mode="bilinear", align_corners=False)
        pixels = (images - self.mean) / self.std
        layers = self._library.layer_tokens(self.trunk, pixels, self._taps)
        layers.append(self._library.patch_tokens(self.trunk, pixels))
        return torch.cat([head(layer.flatten(2)) for head, layer in zip(self.heads, layers, strict=True)], dim=2)[:, 0]


def _head(channels: int) -> nn.Module:
    """Tokens (B, C, N) to scores (B, 1, N)."""
    return nn.Sequential(
        _block(channels, 1), _Residual(_block(channels, 9)), spectral_norm(nn.Conv1d(channels, 1, 1), eps=1e-6)
    )


def _block(channels: int, width: int) -> nn.Module:
    convolution = nn.Conv1d(channels, channels, width, padding=width // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(convolution, eps=1e-6), _GroupedNorm(channels), nn.LeakyReLU(0.2))


class _Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.inner(x)) / 2**0.5


class _GroupedNorm(nn.Module):
    """Batch norm over places and a few pictures, in training as in use: it keeps no running statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels, 1)), nn.Parameter(torch.zeros(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N)."""
        parts = [
            (part - part.mean((0, 2), keepdim=True)) / (part.var((0, 2), correction=0, keepdim=True) + 1e-5).sqrt()
            for part in x.split(_GROUP)
        ]
        return torch.cat(parts) * self.weight + self.bias


def augmented(images: Tensor, draws: Draws, name: str) -> Tensor:
    """Pictures (B, 3, S, S) in [0, 1] with other brightness, saturation, contrast and place, with a gradient.

    Real and decoded pictures of one sample that share ``name`` are changed alike.
    """
    brightness, saturation, contrast, right, down = (
        value.view(-1, 1, 1, 1) for value in draws.uniform(f"augment {name}", 5).unbind(1)
    )
    images = images + (brightness - 0.5) / 2  # DiffAug's half, in [-1, 1]
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    level = images.mean((1, 2, 3), keepdim=True)
    images = (images - level) * (contrast + 0.5) + level
    side = images.shape[-1]
    most = round(side * _TRANSLATION)
    padded = F.pad(images, (most, most, most, most))
    steps = torch.arange(side, device=images.device)
    columns, rows = ((share.view(-1, 1) * (2 * most + 1)).long() + steps for share in (right, down))
    picture = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.movedim(1, -1)[picture, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def adversarial_loss(scores: Tensor) -> Tensor:
    """What the decoder descends: it wants high scores."""
    return -scores.mean()


def hinge_loss(real: Tensor, decoded: Tensor) -> Tensor:
    """What the discriminator descends."""
    return (F.relu(1 - real).mean() + F.relu(1 + decoded).mean()) / 2
