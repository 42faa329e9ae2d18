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
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from mfkit.data.feed import Batch, Layout, Source, feed
from mfkit.errors import DivergedError, UsageError
from mfkit.networks.execution import checkpoint_activations, compile_blocks
from mfkit.objectives.losses import Loss
from mfkit.precision import autocast, products
from mfkit.processes import processes
from mfkit.settings import TrainingSettings
from mfkit.training import checkpoint
from mfkit.training import log as training_log

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What is trained, on which rows, by which loss."""

    network: nn.Module
    """Its parameters that require a gradient are trained, in place; at the end they are their moving average."""
    source: Source
    loss: Callable[[nn.Module, Batch], Loss]
    """(network in its data-parallel wrapper, rows) -> loss. ``network`` itself is the bare one."""
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


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """The rate of a step, counted from 0: linear warm-up, then constant, linear or cosine to the final rate."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    done = {"constant": 0.0, "linear": progress, "cosine": (1 - math.cos(math.pi * progress)) / 2}[settings.schedule]
    return settings.learning_rate + (settings.final_learning_rate - settings.learning_rate) * done


def ema_decay(settings: TrainingSettings, step: int) -> float:
    """The decay of the weights' moving average after a step, counted from 0: rises to its setting, the first is 0."""
    return min(settings.ema, (1 + step) / (10 + step)) if step else 0.0


def train(stage: Stage, settings: TrainingSettings, run: Run) -> None:
    """Trains ``stage.network`` to the last step, from the run's checkpoint where there is one.

    :raises DivergedError: a loss or gradient is not finite; the last checkpoint stays.
    """
    with products(settings.precision, processes().device):
        _train(stage, settings, run)


def _train(stage: Stage, settings: TrainingSettings, run: Run) -> None:
    state = processes()
    layout = _layout(settings, stage.rows_per_item, state.process_index, state.num_processes)
    accelerator = Accelerator(
        cpu=state.device.type == "cpu",
        mixed_precision="no",  # the loop casts itself, so that du/dt can stay in float32
        gradient_accumulation_steps=layout.accumulation,
        log_with=list(run.trackers) or None,
        project_dir=run.output.parent,
    )
    parameters = {name: value for name, value in stage.network.named_parameters() if value.requires_grad}
    if settings.activation_checkpointing:
        checkpoint_activations(stage.blocks)
    if settings.compile:
        compile_blocks(stage.blocks)
    network = accelerator.prepare(stage.network.train())
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    average = [value.detach().clone() for value in parameters.values()]
    saved, log = checkpoint.checkpoint_path(run.output), training_log.log_path(run.output)
    identity = {name: value for name, value in asdict(settings).items() if name not in _MAY_CHANGE} | run.identity
    first_step = 0
    if run.restart:
        if accelerator.is_main_process:
            saved.unlink(missing_ok=True)
        accelerator.wait_for_everyone()
    if saved.exists():
        first_step = checkpoint.restore(saved, identity, parameters, average, optimizer)
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
        rate = learning_rate(settings, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for _ in range(layout.accumulation):
            batch = _to_device(next(batches), accelerator.device)
            with accelerator.accumulate(network):
                with autocast(settings.precision, accelerator.device):
                    loss = stage.loss(network, batch)
                accelerator.backward(loss.value)
            meter.add(loss)
        norm = accelerator.clip_grad_norm_(parameters.values(), settings.clip or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        get_ema_multi_avg_fn(ema_decay(settings, step))(average, list(parameters.values()), None)
        done = step + 1
        meter.end_step(done, norm, rate, last=done == settings.steps or done % settings.save_every == 0)
        if (done % settings.save_every == 0 or done == settings.steps) and accelerator.is_main_process:
            checkpoint.save(saved, done, identity, parameters, average, optimizer)
        drawn = stage.picture and settings.sample_every and done % settings.sample_every == 0
        if stage.picture and drawn and accelerator.is_main_process:
            trained = [value.detach().clone() for value in parameters.values()]
            _copy(average, parameters.values())
            stage.picture(done)
            _copy(trained, parameters.values())
    _copy(average, parameters.values())
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


def _copy(values: Iterable[Tensor], parameters: Iterable[nn.Parameter]) -> None:
    with torch.no_grad():
        for value, parameter in zip(values, parameters, strict=True):
            parameter.copy_(value)


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(
        batch.positions, {name: column.to(device, non_blocking=True) for name, column in batch.columns.items()}
    )
