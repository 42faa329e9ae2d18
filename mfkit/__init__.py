"""mfkit: one-step image generation by mean flow on representation autoencoders (MF-RAE)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mfkit.loading import load

    __version__: str
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    """What takes long to import, once it is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("mfkit")
    if name == "load":
        from mfkit.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
