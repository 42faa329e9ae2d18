"""The settings of the stages, one dataclass a concern. Presets fill them; every field is a flag on the command line.

This module and :mod:`mfkit.config.presets` import nothing heavy: the command line reads them to print its help.
"""

from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field
from typing import Any, ClassVar, Literal

PresetName = Literal["digits", "imagenet256", "imagenet512"]
ModelName = Literal["tiny", "S", "B", "L", "XL"]
DTypeName = Literal["float16", "float32"]
PrecisionName = Literal["float32", "tf32", "bf16"]
OnBad = Literal["error", "skip"]


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The names and both values of the settings that are not the same, as text; empty where all are."""
    names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    return "; ".join(f"{name} {there.get(name)} there, {here.get(name)} here" for name in names)


class Settings:
    """A concern of a stage."""

    __dataclass_fields__: ClassVar[dict[str, Field]]
    panel: ClassVar[str]
    """Heading of its options in the help."""


def setting(help: str, *, metavar: str | None = None, low: float | None = None, high: float | None = None) -> Any:
    """A field that the command line offers as a flag with this help, unit and range."""
    return field(metadata={"help": help, "metavar": metavar, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """How any network is trained: the same loop for all stages."""

    panel: ClassVar[str] = "Training"

    steps: int = setting("Optimiser steps.", metavar="N", low=1)
    batch_size: int = setting("Rows per optimiser step, over all processes.", metavar="ROWS", low=1)
    micro_batch: int = setting(
        "Rows per forward pass and process; 0 is a process's whole share.", metavar="ROWS", low=0
    )
    learning_rate: float = setting("Peak learning rate of AdamW.", metavar="RATE", low=0)
    final_learning_rate: float = setting(
        "Learning rate at the last step; not for a constant schedule.", metavar="RATE", low=0
    )
    schedule: Literal["constant", "linear", "cosine"] = setting("Way from the peak rate to the final one.")
    warmup: int = setting("Steps of linear warm-up.", metavar="N", low=0)
    weight_decay: float = setting("Decoupled weight decay.", metavar="W", low=0)
    ema: float = setting("Decay of the weights' moving average, which is what is saved.", metavar="D", low=0, high=1)
    clip: float = setting("Largest gradient norm; 0 does not clip.", metavar="NORM", low=0)
    seed: int = setting("Seed of weights, order, noise and times.", metavar="N", low=0)
    precision: PrecisionName = setting("Precision of matrix products; weights, sums and du/dt's difference: float32.")
    compile: bool = setting("Compile the network's blocks by torch.compile.")
    activation_checkpointing: bool = setting("Make activations again in the backward pass: less memory, more work.")
    workers: int = setting("Threads per process that read and decode ahead; 0 reads as it goes.", metavar="N", low=0)
    log_every: int = setting("Steps between lines of the log.", metavar="N", low=1)
    save_every: int = setting("Steps between checkpoints.", metavar="N", low=1)
    save_minutes: float = setting("Minutes between checkpoints; 0 goes by the steps alone.", metavar="MIN", low=0)
    keep: int = setting("Newest checkpoints to keep until the output is written.", metavar="N", low=1)
    sample_every: int = setting("Steps between grids from fixed noise; 0 draws none.", metavar="N", low=0)


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings(TrainingSettings):
    """How a generator is trained."""

    label_drop: float = setting("Share of rows trained without label.", metavar="P", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class FlowSettings(Settings):
    """The path from data to noise, fixed by the teacher for all that follow it."""

    panel: ClassVar[str] = "Flow"

    time_shift: float = setting(
        "Shift s of the times towards noise, t' = s t / (1 + (s - 1) t); 0 is sqrt(C H W / 4096), never below 1.",
        metavar="S",
        low=0,
    )


@dataclass(frozen=True, kw_only=True)
class MeanFlowSettings(Settings):
    """The mean-flow loss of distill and bootstrap."""

    panel: ClassVar[str] = "Mean flow"

    instantaneous: float = setting("Share of rows with r = t.", metavar="P", low=0, high=1)
    derivative: Literal["auto", "central", "jvp"] = setting(
        "How du/dt is taken; auto: as a difference in float32, else by the JVP, since a difference would be noise."
    )
    difference_step: float = setting("Half-width of the central difference, in t.", metavar="DT", low=1e-6, high=0.5)
    weight_power: float = setting("p of the row weight 1 / (error + c)^p.", metavar="P", low=0)
    weight_offset: float = setting("c of the row weight 1 / (error + c)^p.", metavar="C", low=0)


@dataclass(frozen=True, kw_only=True)
class MidtrainSettings(Settings):
    """The pairs that consistency mid-training takes from a trajectory."""

    panel: ClassVar[str] = "Mid-training"

    pairs: int = setting("Pairs of states taken from a trajectory each time it is read.", metavar="N", low=1)
    to_data: float = setting(
        "Share of pairs that end at the data; the others are any two states.", metavar="P", low=0, high=1
    )


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(Settings):
    """The representation autoencoder: its decoder, and the stand-in encoder ``tiny``."""

    panel: ClassVar[str] = "Autoencoder"

    image_size: int = setting("Side of the images in pixels.", metavar="PX", low=8)
    encoder_size: int = setting("Side of the encoder's input in pixels.", metavar="PX", low=8)
    decoder: ModelName = setting("Size of the ViT decoder.")
    noise: float = setting("Decoder training adds noise to the latent, sigma ~ U[0, this].", metavar="SIGMA", low=0)
    feature_weight: float = setting(
        "Weight of the squared distance of the encoder's features, beside the L1 of the pixels.", metavar="W", low=0
    )
    encoder_steps: int = setting("Pre-training steps of the encoder `tiny`.", metavar="N", low=1)
    mask: float = setting("Pre-training of `tiny` hides a share U[0, this] of the patches.", metavar="P", low=0, high=1)
    label_weight: float = setting("Weight of the labels' loss in the pre-training of `tiny`.", metavar="W", low=0)


@dataclass(frozen=True, kw_only=True)
class StorageSettings(Settings):
    """How what a frozen network makes is written."""

    batch_size: int = setting(
        "Rows per forward pass and process; on a CPU in whole passes of a fixed size.", metavar="ROWS", low=1
    )
    dtype: DTypeName = setting("Number format of what is stored.")
    precision: PrecisionName = setting("Precision of matrix products.")
    shard_size: int = setting("Samples per shard.", metavar="N", low=1)

    def of_the_result(self) -> dict[str, Any]:
        """Those that say what is written, not how fast."""
        return {name: value for name, value in asdict(self).items() if name != "batch_size"}


@dataclass(frozen=True, kw_only=True)
class EncodeSettings(StorageSettings):
    """How latents are written."""

    panel: ClassVar[str] = "Encoding"


@dataclass(frozen=True, kw_only=True)
class TrajectorySettings(StorageSettings):
    """How the teacher's trajectories are solved and written."""

    panel: ClassVar[str] = "Trajectories"

    solver_steps: int = setting("Steps from noise to data; a trajectory has one state more.", metavar="N", low=1)
    solver: Literal["euler", "heun"] = setting("Solver of the teacher's ODE.")
    seed: int = setting("Seed of noise and labels.", metavar="N", low=0)
