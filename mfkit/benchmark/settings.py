"""What ``bench`` measures, and how. Nothing heavy is imported here: the command line reads it to print its help."""

from dataclasses import dataclass
from typing import ClassVar, get_args

from mfkit.config.presets import PresetName
from mfkit.config.settings import PrecisionName
from mfkit.flow.objectives import OBJECTIVES, Stage
from mfkit.setting import Settings, setting

TRAININGS: tuple[Stage, ...] = get_args(Stage)
STAGES = ("encode", *TRAININGS, "trajectories", "sample", "loader")
"""In the order of ``bench all``."""


@dataclass(frozen=True, kw_only=True)
class BenchSettings(Settings):
    """A stage at a size."""

    heading: ClassVar[str] = "Benchmark"

    preset: PresetName = setting("imagenet256", "Whose networks, latents and settings.")
    model: str | None = setting(
        None, "Size of the generator, or ARCHITECTURE:SIZE.  [default: the preset's]", metavar="SIZE"
    )
    tokens: int | None = setting(
        None, "Tokens of a latent, a square number.  [default: the preset's]", metavar="N", min=1
    )
    batch_size: int | None = setting(
        None, "Rows per step and process.  [default: 8 on a CPU, else 32]", metavar="N", min=1
    )
    rounds: int = setting(5, "Steps to time, after the first, which are not.", metavar="N", min=1)
    precision: PrecisionName = setting("float32", "Precision of matrix products.")
    objective: str | None = setting(
        None,
        "Loss of a training, as its command's help lists them, or whose reading `loader` measures.  [default: the "
        "stage's first]",
        metavar="NAME", choices=list(OBJECTIVES),
    )  # fmt: skip
    late_r: bool = setting(False, "Keep r to the student's head, as `distill --late-r` does.")
    compile: bool = setting(False, "Compile the blocks of a training's networks.")
    activation_checkpointing: bool = setting(False, "Recompute activations in the backward pass of a training.")
