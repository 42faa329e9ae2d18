"""Masked pre-training of a small ViT, for the stand-in encoder ``tiny``."""

import torch.nn.functional as F
from torch import Tensor, nn

from mfkit.autoencoders.timm_encoder import TIMM


class MaskedPretraining(nn.Module):
    """A ViT with two throw-away heads: linear from each patch token to its pixels, linear from their mean to a class.

    The pixels keep how a thing looks in the tokens, the classes what it is; the heads are linear so that both
    must be plain to read in the tokens.
    """

    def __init__(self, encoder: nn.Module, channels: int, patch: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(True)
        self.encoder.norm.requires_grad_(False)
        self.patch = patch
        self.pixels = nn.Linear(channels, 3 * patch**2)
        self.classes = nn.Linear(channels, classes) if classes else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, S, S), normalised, partly masked: predictions of the images, and of the classes (B, classes)."""
        tokens = TIMM.patch_tokens(self.encoder, images)  # (B, C, H, W)
        pixels = self.pixels(tokens.movedim(1, -1)).movedim(-1, 1)
        return F.pixel_shuffle(pixels, self.patch), self.classes(tokens.mean((2, 3))) if self.classes else None


def mask_patches(images: Tensor, masked: Tensor) -> Tensor:
    """Images (B, 3, S, S) with the patches where ``masked`` (B, H, W) is true set to 0, the mean of normalised ones."""
    patch = images.shape[-1] // masked.shape[-1]
    mask = masked.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    return images.masked_fill(mask[:, None], 0.0)
