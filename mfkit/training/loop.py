"""The one training loop. A stage says which network, which rows and which loss; the loop does the rest."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from mfkit.data.feed import Layout, Source, feed
from mfkit.errors import DivergedError, UsageError
from mfkit.objectives.losses import Loss
from mfkit.precision import products
from mfkit.processes import processes
from mfkit.settings import TrainingSettings
from mfkit.training import checkpoint
from mfkit.training import log as training_log
from mfkit.training.optimisation import LossOf, Optimisation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What is trained, on which rows, by which loss."""

    network: nn.Module
    """Its parameters that require a gradient are trained, in place; at the end they are their moving average."""
    source: Source
    loss: LossOf
    """``network`` itself is the bare one."""
    blocks: Iterable[nn.Module] = ()
    """The network's repeated blocks: what is compiled, and what is made again in the backward pass, one at a time."""
    rows_per_item: int = 1
    """Rows of the network that an item of the source becomes."""
    picture: Callable[[int], None] | None = None
    """Draws a grid after so many steps; the network holds its moving average meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a stage leaves its traces, and how it starts."""

    output: Path
    identity: dict[str, Any] = field(default_factory=dict)
    """What besides the settings must be the same for a checkpoint to fit: digests of the inputs, sizes."""
    restart: bool = False
    trackers: tuple[str, ...] = ()


def train(stage: Stage, settings: TrainingSettings, run: Run) -> None:
    """Trains ``stage.network`` to the last step, from the run's checkpoint where there is one.

    :raises DivergedError: a loss or gradient is not finite; the last checkpoint stays.
    """
    with products(settings.precision, processes().device):
        _train(stage, settings, run)


def _train(stage: Stage, settings: TrainingSettings, run: Run) -> None:
    state = processes()
    layout = _layout(settings, stage.rows_per_item, state.process_index, state.num_processes)
    optimisation = Optimisation(
        stage.network, stage.blocks, settings,
        accumulation=layout.accumulation, trackers=run.trackers, folder=run.output.parent,
    )  # fmt: skip
    accelerator = optimisation.accelerator
    if optimisation.sharded and settings.sample_every:
        raise UsageError("--sample-every draws in one process, which has a part of the weights only under FSDP")
    saved, log = checkpoint.checkpoint_path(run.output), training_log.log_path(run.output)
    identity = {name: value for name, value in asdict(settings).items() if name not in _MAY_CHANGE} | run.identity
    first_step = 0
    if run.restart:
        if accelerator.is_main_process:
            saved.unlink(missing_ok=True)
        accelerator.wait_for_everyone()
    if saved.exists():
        first_step = checkpoint.restore(saved, identity, optimisation)
        logger.info("going on from %s, step %d", saved, first_step)
    if accelerator.is_main_process:
        log.parent.mkdir(parents=True, exist_ok=True)
        training_log.cut(log, first_step)
        if run.trackers:
            accelerator.init_trackers(run.output.stem, config=identity)
    accelerator.wait_for_everyone()

    meter = _Meter(accelerator, settings, log, first_step)
    batches = feed(
        stage.source, layout, first_step=first_step, last_step=settings.steps, seed=settings.seed,
        workers=settings.workers,
    )  # fmt: skip
    hidden = not (accelerator.is_main_process and sys.stderr.isatty() and logger.isEnabledFor(logging.WARNING))
    for step in tqdm(range(first_step, settings.steps), initial=first_step, total=settings.steps, disable=hidden):
        norm, rate = optimisation.step(step, batches, stage.loss, meter.add)
        done = step + 1
        to_save = done == settings.steps or done % settings.save_every == 0
        meter.end_step(done, norm, rate, last=to_save)
        if to_save:
            checkpoint.save(saved, done, identity, optimisation)
        drawn = stage.picture and settings.sample_every and done % settings.sample_every == 0
        if stage.picture and drawn and accelerator.is_main_process:
            with optimisation.averaged():
                stage.picture(done)
    optimisation.take_average()
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    stage.network.eval()


def _layout(settings: TrainingSettings, rows_per_item: int, rank: int, processes: int) -> Layout:
    """Shares of the source's items, each of which becomes ``rows_per_item`` rows of the network."""
    for rows in (settings.batch_size, settings.micro_batch):
        if rows % rows_per_item:
            raise UsageError(f"a batch of {rows} rows does not divide by {rows_per_item} rows per trajectory")
    items = settings.batch_size // rows_per_item
    return Layout(items, settings.micro_batch // rows_per_item or max(1, items // processes), rank, processes)


_MAY_CHANGE = (
    "workers", "log_every", "save_every", "sample_every", "micro_batch", "compile", "activation_checkpointing"
)  # fmt: skip
"""Settings that a run may be resumed with another value of."""


class _Meter:
    """Averages what the steps measure, writes it, and stops the run when it is not finite.

    Values stay on the device between two lines of the log, so that no step waits for them.
    """

    def __init__(self, accelerator: Accelerator, settings: TrainingSettings, log: Path, first_step: int) -> None:
        self._accelerator, self._settings, self._log = accelerator, settings, log
        self._sums = torch.zeros(3, device=accelerator.device)
        self._passes, self._step, self._clock = 0, first_step, time.perf_counter()

    def add(self, loss: Loss) -> None:
        self._sums[:2] += torch.stack([loss.value.detach(), loss.squared_error]).float()
        self._passes += 1

    def end_step(self, step: int, norm: Tensor, rate: float, *, last: bool) -> None:
        self._sums[2] += norm
        if step % self._settings.log_every and not last:
            return
        loss, error, norms = self._accelerator.reduce(self._sums, "mean").tolist()
        steps, seconds = step - self._step, time.perf_counter() - self._clock
        line = training_log.LogLine(
            step, loss / self._passes, error / self._passes, norms / steps, rate,
            steps * self._settings.batch_size / seconds,
        )  # fmt: skip
        if not all(math.isfinite(value) for value in (line.loss, line.squared_error, line.gradient_norm)):
            raise DivergedError(
                f"loss {line.loss:g}, gradient norm {line.gradient_norm:g} between steps {self._step + 1} and {step}: "
                f"stopped; a checkpoint from before, if there was one, is kept"
            )
        if self._accelerator.is_main_process:
            training_log.append(self._log, line)
        if self._accelerator.log_with:
            self._accelerator.log({name: value for name, value in asdict(line).items() if name != "step"}, step=step)
        self._sums.zero_()
        self._passes, self._step, self._clock = 0, step, time.perf_counter()
