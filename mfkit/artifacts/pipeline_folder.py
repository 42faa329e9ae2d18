"""Where the parts of a pipeline lie that diffusers saved. ``mfkit export`` writes such a folder; it is read again."""

from pathlib import Path

INDEX = "model_index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
PREFIX = "network."
"""Of the names of a generator's weights there."""


def component(folder: Path, name: str) -> Path | None:
    """The folder of a model in that of a pipeline; None where ``folder`` is none."""
    return folder / name if (folder / INDEX).is_file() else None
