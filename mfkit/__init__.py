"""mfkit: one-step image generation by mean flow on representation autoencoders (MF-RAE)."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__version__ = version("mfkit")
__all__ = ["__version__", "load"]


def load(path: str | Path) -> nn.Module:
    """The network in a file that mfkit wrote, ready to use: see :func:`mfkit.files.weights.load`."""
    from mfkit.files import weights

    return weights.load(path)
