"""The settings that commands share, by concern. Each has a default; presets hold what differs from it.

An objective's own settings are fields of the objective (:mod:`mfkit.flow.objectives`), the teacher's guidance is in
:mod:`mfkit.flow.guidance`. Nothing heavy is imported here: the command line reads this to print its help.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mfkit.flow.solvers import ODE_SOLVERS, SOLVERS, TIME_GRIDS
from mfkit.setting import Settings, setting

SizeName = Literal["tiny", "S", "B", "L", "XL"]
DTypeName = Literal["float16", "float32"]
PrecisionName = Literal["float32", "tf32", "bf16"]
OnError = Literal["raise", "skip"]
OptimizerName = Literal["adamw", "muon"]

_PRECISION = "Precision of matrix products; weights and sums stay in float32."
_BATCH = "Samples per forward pass and process; on a CPU rounded up to whole micro-batches."


@dataclass(frozen=True)
class Reading:
    """How samples are read."""

    on_error: OnError = "raise"
    cache: Path | None = None
    """Where remote shards are kept, to be read by random access; None reads them as a stream."""


DEFAULT_READING = Reading()


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """How any network is trained: one loop for all."""

    heading: ClassVar[str] = "Training"

    steps: int = setting(10_000, "Optimiser steps.", metavar="N", min=1)
    batch_size: int = setting(256, "Samples per optimiser step, over all processes.", metavar="N", min=1)
    micro_batch: int = setting(
        0, "Samples per forward pass and process; 0 is a process's whole share.", metavar="N", min=0
    )
    optimizer: OptimizerName = setting(
        "adamw",
        "AdamW; or Muon (arXiv 2502.16982) for the matrices of attention and MLP, in steps of AdamW's size, and AdamW "
        "for the rest. Muon amplifies rounding: other micro-batches or processes give another run.",
    )
    learning_rate: float = setting(1e-4, "Peak learning rate.", metavar="RATE", min=0)
    final_learning_rate: float = setting(
        1e-4, "Learning rate at the last step; unused by a constant schedule.", metavar="RATE", min=0
    )
    schedule: Literal["constant", "linear", "cosine"] = setting("constant", "Learning-rate decay.")
    warmup: int = setting(0, "Steps of linear warm-up.", metavar="N", min=0)
    weight_decay: float = setting(0.0, "Decoupled weight decay.", metavar="W", min=0)
    ema: tuple[float, ...] = setting(
        (0.9999,),
        "Decay of the weights' exponential moving average, which is what is saved; further averages, as in 0.999,0.99, "
        "are written beside it, as OUTPUT.ema-D.safetensors, and measured with it.",
        metavar="D[,D]",
        min=0,
        max=1,
    )
    ema_warmup: int = setting(
        0,
        "Steps in which that decay rises exponentially from 0.5; with 0 it rises as (1 + step) / (10 + step).",
        metavar="N",
        min=0,
    )
    max_grad_norm: float = setting(1.0, "Clip the gradient to this norm; 0 does not clip.", metavar="NORM", min=0)
    seed: int = setting(0, "Seed of weights, order, noise and times.", metavar="N", min=0)
    precision: PrecisionName = setting("float32", _PRECISION)
    compile: bool = setting(False, "Compile the network's blocks by torch.compile.")
    activation_checkpointing: bool = setting(False, "Recompute activations in the backward pass, to save memory.")
    workers: int = setting(4, "Threads per process that read and decode ahead; 0 reads in line.", metavar="N", min=0)
    log_every: int = setting(100, "Steps between lines of the log.", metavar="N", min=1)
    save_every: int = setting(5000, "Steps between checkpoints.", metavar="N", min=1)
    save_minutes: float = setting(30.0, "Minutes between checkpoints; 0 goes by the steps alone.", metavar="MIN", min=0)
    keep: int = setting(1, "Newest checkpoints to keep until the output is written.", metavar="N", min=1)
    sample_every: int = setting(0, "Steps between sample grids from fixed noise; 0 draws none.", metavar="N", min=0)


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings(TrainingSettings):
    """How a generator is trained."""

    class_dropout: float = setting(
        0.1, "Share of samples trained without their label; drifting and frechet take none.", metavar="P", min=0, max=1
    )
    fid_every: int = setting(
        0,
        "Steps between Fréchet distances of the average's samples, in the RAE encoder's features; they are in the log, "
        "and the best network is kept as OUTPUT.best.safetensors. 0 measures none.",
        metavar="N",
        min=0,
    )
    fid_images: int = setting(1000, "Samples of each of them.", metavar="N", min=2)


@dataclass(frozen=True, kw_only=True)
class FlowSettings(Settings):
    """The path from data to noise, fixed by the teacher for all that follow it."""

    heading: ClassVar[str] = "Flow"

    time_shift: float = setting(
        0.0,
        "Shift s of times towards noise, t' = s t / (1 + (s - 1) t); 0 is sqrt(C H W / 4096), never below 1.",
        metavar="S",
        min=0,
    )


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(Settings):
    """The representation autoencoder: its decoder, and the encoder ``tiny``, which is pre-trained on the images."""

    heading: ClassVar[str] = "Autoencoder"

    image_size: int = setting(
        256, "Side of the images; 0 takes it from the images, from 32 to 128.", metavar="PX", min=0
    )
    crop_scale: float = setting(
        1.0,
        "The decoder trains on random crops of squares that are this many times as large; 1 is the whole. RAE has 1.5: "
        "256 of 384 pixels.",
        metavar="X",
        min=1,
        max=8,
    )
    patch: int = setting(16, "Pixels on a side that one token stands for.", metavar="PX", min=1)
    encoder_size: int = setting(
        0, "Side of the encoder's input; 0 is what gives image size / patch tokens.", metavar="PX", min=0
    )
    decoder: SizeName = setting("XL", "Size of the ViT decoder.")
    noise_tau: float = setting(
        0.8, "The decoder trains on latents with noise of sigma ~ U[0, this].", metavar="SIGMA", min=0
    )
    perceptual: str = setting(
        "none",
        "Perceptual loss beside the pixels' L1: lpips (arXiv 1801.03924), a file of VGG-16's weights for it, encoder "
        "(the RAE's own layers), or none.",
        metavar="NAME|FILE",
    )
    perceptual_weight: float = setting(1.0, "Its weight.", metavar="W", min=0, unless=("perceptual", "none"))
    discriminator: str = setting(
        "none",
        "Trunk of a discriminator: a timm model, a file of one with its config.json, encoder (the RAE's own), or none.",
        metavar="NAME|FILE",
    )
    adversarial_weight: float = setting(
        0.75,
        "Weight of what the discriminator says, whose gradient is brought to the size of the others'.",
        metavar="W",
        min=0,
        unless=("discriminator", "none"),
    )
    discriminator_start: float = setting(
        0.375, "Share of the steps after which the discriminator is trained.", metavar="P", min=0, max=1,
        unless=("discriminator", "none"),
    )  # fmt: skip
    adversarial_start: float = setting(
        0.5, "Share of the steps after which the decoder descends it.", metavar="P", min=0, max=1,
        unless=("discriminator", "none"),
    )  # fmt: skip
    pretrain_steps: int = setting(300_000, "Pre-training steps of the encoder `tiny`.", metavar="N", min=1)
    mask_ratio: float = setting(
        0.6, "Pre-training of `tiny` masks a share U[0, this] of the patches.", metavar="P", min=0, max=1
    )
    class_loss_weight: float = setting(
        0.1, "Weight of the classification loss in the pre-training of `tiny`.", metavar="W", min=0
    )


@dataclass(frozen=True, kw_only=True)
class StorageSettings(Settings):
    """How the outputs of a frozen network are computed and stored."""

    heading: ClassVar[str] = "Output"

    batch_size: int = setting(256, _BATCH, metavar="N", min=1)
    dtype: DTypeName = setting("float16", "Number format of what is stored.")
    precision: PrecisionName = setting("float32", _PRECISION)
    shard_size: int = setting(2000, "Samples per shard.", metavar="N", min=1)

    def resume_key(self) -> dict[str, Any]:
        """The settings that an interrupted run must share with the one that goes on: all but those of speed."""
        return {name: value for name, value in asdict(self).items() if name != "batch_size"}


@dataclass(frozen=True, kw_only=True)
class EncodeSettings(StorageSettings):
    """How latents are written."""


@dataclass(frozen=True, kw_only=True)
class TrajectorySettings(StorageSettings):
    """How the teacher's trajectories are solved and written."""

    heading: ClassVar[str] = "Trajectories"

    shard_size: int = setting(200, "Samples per shard.", metavar="N", min=1)
    solver_steps: int = setting(16, "Steps from noise to data; a trajectory has one state more.", metavar="N", min=1)
    solver: str = setting("euler", "Solver of the teacher's ODE.", choices=ODE_SOLVERS)
    time_grid: str = setting("shifted", "Grid of times.", choices=TIME_GRIDS)
    seed: int = setting(0, "Seed of the noise.", metavar="N", min=0)


@dataclass(frozen=True, kw_only=True)
class DecodeSettings(Settings):
    """How latents are decoded."""

    heading: ClassVar[str] = "Output"

    batch_size: int = setting(100, _BATCH, metavar="N", min=1)
    precision: PrecisionName = setting("float32", _PRECISION)


@dataclass(frozen=True, kw_only=True)
class SampleSettings(Settings):
    """How images are sampled."""

    heading: ClassVar[str] = "Sampling"

    nfe: int | None = setting(
        None, "Network evaluations per image.  [default: 1 for a student, about 50 for a teacher]", metavar="N", min=1
    )
    solver: str | None = setting(
        None, "Solver of a teacher's ODE, or of an SDE of the same marginals.  [default: euler]", choices=SOLVERS
    )
    time_grid: str = setting("shifted", "Grid of times.", choices=TIME_GRIDS)
    time_shift: float | None = setting(
        None, "Shift of the grid.  [default: a teacher's own, 1 for a student]", metavar="S", min=1
    )
    labels: str = setting("equal", "equal: all classes in turn; random; or class indices such as 0,3,7.")
    seed: int = setting(0, "Image i depends on the seed and i alone.", metavar="N", min=0)
    batch_size: int = setting(100, _BATCH, metavar="N", min=1)
    precision: PrecisionName = setting("float32", _PRECISION)
