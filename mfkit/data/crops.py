"""Random crops: squares of images that were opened larger."""

from collections.abc import Callable

import torch
from torch import Tensor

from mfkit.data.images import ImageDataset
from mfkit.data.npz import NpzImages
from mfkit.errors import UsageError


def larger_images(
    images: ImageDataset, open_at: Callable[[int], ImageDataset], size: int, scale: float
) -> ImageDataset:
    """The same images, ``scale`` times as large as ``size`` pixels.

    :raises UsageError: they are of one size.
    """
    if scale == 1:
        return images
    if isinstance(images, NpzImages):
        raise UsageError(f"--crop-scale: {images.artifact.path} holds images of one size; pass --crop-scale 1")
    found = open_at(round(scale * size))
    found.skips = images.skips  # what cannot be read is counted once
    return found


def random_crops(images: Tensor, size: int, place: Tensor) -> Tensor:
    """Squares of ``size`` pixels of images (B, 3, S, S).

    :param place: (B, 2) in [0, 1): where each lies, from the first row and column to the last that leave it room.
    """
    if images.shape[-1] == size:
        return images
    corner = (place * (images.shape[-1] - size + 1)).long()
    rows, columns = (corner[:, axis, None] + torch.arange(size, device=images.device) for axis in (0, 1))
    each = torch.arange(len(images), device=images.device)
    return images.movedim(1, -1)[each[:, None, None], rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()
