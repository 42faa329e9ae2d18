"""What is asked of a benchmark."""

from dataclasses import dataclass

import torch

from mfkit.config.settings import ModelName, PrecisionName, PresetName


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """Sizes, precision, and how often each thing is timed."""

    preset: PresetName
    model: ModelName
    batch_size: int | None = None
    precision: PrecisionName = "float32"
    compile: bool = False
    activation_checkpointing: bool = False
    plain: bool = True
    """Whether the plain formulation is timed too."""
    rounds: int = 3

    def rows(self, device: torch.device) -> int:
        """Rows of a step; where none are asked for, 32 on a GPU and 8 on a CPU."""
        return self.batch_size or (32 if device.type == "cuda" else 8)
