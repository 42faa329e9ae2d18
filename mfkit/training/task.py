"""One training as a value: what is trained, on what, by which loss, and how the command that does it runs."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import Tensor, nn

from mfkit.config.settings import TrainingSettings
from mfkit.data.loader import Batch
from mfkit.data.order import TrainingOrder
from mfkit.data.stream import StreamDataset
from mfkit.errors import UsageError
from mfkit.flow.objectives.base import Coupling, Loss

LossFunction = Callable[[nn.Module, Batch, int], Iterator[Loss]]
"""(network in its data-parallel wrapper, samples, pieces) -> as many losses, whose mean is that of the samples.

Each is differentiated before the next is asked for, so that the graph of one piece is in memory.
"""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A network, the data that it is trained on, and the loss that it descends."""

    network: nn.Module
    """Without wrapper. Its parameters that require a gradient are trained, in place; at the end they are their EMA."""
    data: TrainingOrder | StreamDataset
    loss: LossFunction
    settings: TrainingSettings
    resume_key: dict[str, Any]
    """What besides the settings must be the same for a checkpoint to fit: digests of the inputs, sizes."""
    blocks: Iterable[nn.Module] = ()
    """The network's repeated blocks: the units of compilation, of activation checkpointing and of FSDP."""
    rows_per_sample: int = 1
    """Rows of the network that a sample of the data becomes."""
    coupling: Coupling = "none"
    """Which rows the loss takes together; others are independent."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that the loss keeps between steps and changes in place; they are in the checkpoint."""
    begin: Callable[[], None] | None = None
    """Fills ``state`` where the run begins; the network is on its device."""
    after_step: Callable[[], None] | None = None
    """Changes ``state`` after a step of the optimiser."""
    draw_grid: Callable[[int], None] | None = None
    """Draws a sample grid after so many steps; the network holds its EMA meanwhile."""
    save: Callable[[Path], None] | None = None
    """Writes the network as it is, to be used as it is; all processes call it."""
    measure: Callable[[], float] | None = None
    """Tells how good the network is and keeps the best; it holds its EMA meanwhile. All processes call it."""
    measure_every: int = 0
    """Steps between two of them; 0 has none."""
    adversary: "Task | None" = None
    """A second network, trained in each step after the first, on the same samples, by an optimiser of its own."""
    first_step: int = 0
    """Before which an adversary is not trained."""
    suffix: str = ""
    """Of its log and checkpoints, where a command trains more than one network."""


def in_one_piece(loss: Callable[[nn.Module, Batch], Loss]) -> LossFunction:
    """The loss function of rows that are independent, which need no pieces."""

    def losses(network: nn.Module, batch: Batch, pieces: int) -> Iterator[Loss]:
        yield loss(network, batch)

    return losses


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a training command runs, whatever it trains."""

    output: Path
    overwrite: bool = False
    restart: bool = False
    dry_run: bool = False
    trackers: tuple[str, ...] = ()
    """Names of accelerate's trackers."""

    def __post_init__(self) -> None:
        """:raises UsageError: a tracker is unknown to accelerate, or not installed."""
        installed = {tracker.value for tracker in get_available_trackers()}
        for name in self.trackers:
            if name not in LOGGER_TYPE_TO_CLASS:
                raise UsageError(f"--log-with {name}: accelerate knows {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
            if name not in installed:
                raise UsageError(f"--log-with {name}: not installed; pip install {name}")


def run_path(options: RunOptions, task: Task) -> Path:
    """The path from which a task's log and checkpoints are named."""
    return options.output.with_suffix(f"{task.suffix}.safetensors")
