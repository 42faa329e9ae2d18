"""Grids of images, as PNG files."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mfkit.artifacts.atomic import atomic_write
from mfkit.data.codecs import png_bytes, to_uint8


def paired(above: Tensor, below: Tensor, columns: int) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] and others in rows of a grid: each row of the first over the one of the second."""
    rest = torch.full_like(above[:1], 96 / 255).expand(-len(above) % columns, -1, -1, -1)
    rows = (torch.cat([images, rest]).split(columns) for images in (above, below))
    return torch.cat([row for pair in zip(*rows, strict=True) for row in pair])


def write_grid(path: Path, images: Tensor, columns: int, *, gap_every: int = 0) -> None:
    """See :func:`grid_png`."""
    with atomic_write(path) as partial:
        partial.write_bytes(grid_png(images, columns, gap_every=gap_every))


def grid_png(images: Tensor, columns: int, *, gap_every: int = 0) -> bytes:
    """Images (N, 3, H, W) in [0, 1] side by side, row by row; small ones enlarged to 64 pixels.

    :param gap_every: columns after which a white gap stands.
    """
    scale = max(1, 64 // images.shape[-1])
    tiles = F.pad(to_uint8(images).repeat_interleave(scale, -1).repeat_interleave(scale, -2), (1, 1, 1, 1), value=96)
    empty = torch.full_like(tiles[:1], 96).expand(-len(tiles) % columns, -1, -1, -1)
    rows = torch.cat([tiles, empty]).unflatten(0, (-1, columns))
    grid = rows.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    if gap_every:
        *parts, last = grid.split(gap_every * tiles.shape[-1], dim=-1)
        grid = torch.cat([*(F.pad(part, (0, 16), value=255) for part in parts), last], dim=-1)
    return png_bytes(grid)
