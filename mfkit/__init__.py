"""mfkit: one-step image generation by mean flow on representation autoencoders (MF-RAE)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from mfkit.interop.pipeline import MeanFlowPipeline

    __version__: str
__all__ = ["MeanFlowPipeline", "__version__", "load"]


def load(path: str | Path) -> nn.Module:
    """The network in a file that mfkit wrote, ready to use: see :func:`mfkit.autoencoders.weights.load`."""
    from mfkit.autoencoders import weights

    return weights.load(path)


def __getattr__(name: str) -> object:
    """What takes long to find, once it is asked for: the version, :class:`mfkit.interop.pipeline.MeanFlowPipeline`."""
    if name == "__version__":
        from importlib.metadata import version

        return version("mfkit")
    if name == "MeanFlowPipeline":
        from mfkit.interop.pipeline import MeanFlowPipeline

        return MeanFlowPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
