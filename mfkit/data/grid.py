"""Grids of images, as PNG files."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mfkit.artifacts.atomic import atomic_write
from mfkit.data.codecs import png_bytes, to_uint8


def write_grid(path: Path, images: Tensor, columns: int, *, gap_every: int = 0) -> None:
    """Images (N, 3, H, W) in [0, 1] side by side, row by row; small ones enlarged to 64 pixels.

    :param gap_every: columns after which a white gap stands.
    """
    scale = max(1, 64 // images.shape[-1])
    tiles = F.pad(to_uint8(images).repeat_interleave(scale, -1).repeat_interleave(scale, -2), (1, 1, 1, 1), value=96)
    rows = []
    for begin in range(0, len(tiles), columns):
        row = list(tiles[begin : begin + columns])
        row += [torch.full_like(tiles[0], 96)] * (columns - len(row))
        if gap_every:
            gap = torch.full((3, tiles.shape[-2], 16), 255, dtype=torch.uint8, device=tiles.device)
            for place in range(columns - columns % gap_every or columns, 0, -gap_every):
                if place < columns:
                    row.insert(place, gap)
        rows.append(torch.cat(row, dim=-1))
    with atomic_write(path) as partial:
        partial.write_bytes(png_bytes(torch.cat(rows, dim=-2)))
