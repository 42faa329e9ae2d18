"""Grids of images and curves of logs, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mfkit.artifacts.atomic import whole_file
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
    with whole_file(path) as partial:
        partial.write_bytes(png_bytes(torch.cat(rows, dim=-2)))


def write_curves(path: Path, logs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Loss, raw squared error and gradient norm over the steps, a line for each run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {
        "loss": "loss",
        "squared_error": "squared error, per element, unweighted",
        "gradient_norm": "gradient norm before clipping",
    }
    for axes, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for run, lines in logs.items():
            axes.plot([line["step"] for line in lines], [line[name] for line in lines], label=run)
        axes.set(title=title, xlabel="step", yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=100)
