"""The one training loop. A stage says which network, which rows and which loss; the loop does the rest."""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from mfkit.artifacts.artifact import metadata
from mfkit.artifacts.atomic import whole_file
from mfkit.artifacts.safetensors_files import save_tensors
from mfkit.config.settings import TrainingSettings
from mfkit.data.loader import Batch, Layout, Source, feed
from mfkit.errors import DivergedError, StoppedError, UsageError
from mfkit.flow.losses import Loss
from mfkit.runtime.distributed import processes
from mfkit.runtime.precision import products
from mfkit.training import checkpoint
from mfkit.training import log as training_log
from mfkit.training.signals import Asked, noted
from mfkit.training.step_status import Agreement
from mfkit.training.train_state import LossOf, Optimisation

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

    :raises DivergedError: a loss or gradient is not finite; the last checkpoint stays, the step's inputs are kept.
    :raises StoppedError: a signal asked to stop; the step was finished and saved.
    """
    with products(settings.precision, processes().device), noted() as asked:
        _train(stage, settings, run, asked)


def _train(stage: Stage, settings: TrainingSettings, run: Run, asked: Asked) -> None:
    state = processes()
    layout = _layout(settings, stage.rows_per_item, state.process_index, state.num_processes)
    optimisation = Optimisation(
        stage.network, stage.blocks, settings,
        accumulation=layout.accumulation, trackers=run.trackers, folder=run.output.parent,
    )  # fmt: skip
    accelerator = optimisation.accelerator
    if optimisation.sharded and settings.sample_every:
        raise UsageError("--sample-every draws in one process, which has a part of the weights only under FSDP")
    log = training_log.log_path(run.output)
    identity = {name: value for name, value in asdict(settings).items() if name not in _MAY_CHANGE} | run.identity
    first_step = 0
    if run.restart:
        if accelerator.is_main_process:
            checkpoint.forget(run.output)
        accelerator.wait_for_everyone()
    kept = checkpoint.checkpoints(run.output)
    if len({str(part) for part in gather_object([kept])}) > 1:
        raise UsageError(f"{run.output.parent}: not all processes see the same checkpoints there; it must be shared")
    if kept:
        first_step = checkpoint.restore(kept[-1], identity, optimisation)
        logger.info("going on from %s, step %d", kept[-1], first_step)
    if accelerator.is_main_process:
        log.parent.mkdir(parents=True, exist_ok=True)
        training_log.cut(log, first_step)
        if run.trackers:
            accelerator.init_trackers(run.output.stem, config=identity)
    accelerator.wait_for_everyone()

    meter, agreement = _Meter(accelerator, settings, log, first_step), Agreement(asked, settings.save_minutes)
    recent: deque[_Inputs] = deque(maxlen=2)
    done = first_step
    batches = feed(
        stage.source, layout, first_step=first_step, last_step=settings.steps, seed=settings.seed,
        workers=settings.workers,
    )  # fmt: skip
    hidden = not (accelerator.is_main_process and sys.stderr.isatty() and logger.isEnabledFor(logging.WARNING))
    for step in tqdm(range(first_step, settings.steps), initial=first_step, total=settings.steps, disable=hidden):
        done = step + 1
        recent.append(_Inputs(done, list(islice(batches, layout.accumulation))))
        norm, rate = optimisation.step(step, recent[-1].batches, stage.loss, meter.add)
        meter.end_step(norm)
        regular = done == settings.steps or done % settings.save_every == 0
        verdict = agreement.after(done, meter.sums)
        if regular or verdict.save or verdict.signal or done % settings.log_every == 0:
            verdict = agreement.settled()
        if verdict.diverged:
            raise _diverged(next(inputs for inputs in recent if inputs.step == verdict.diverged), run.output)
        to_save = regular or verdict.save or verdict.signal is not None
        if to_save or done % settings.log_every == 0:
            meter.write(done, rate)
        if to_save:
            stage.source.damage.agree()
            checkpoint.save(run.output, done, identity, optimisation, keep=settings.keep)
            agreement.saved()
        if verdict.signal:
            break
        drawn = stage.picture and settings.sample_every and done % settings.sample_every == 0
        if stage.picture and drawn and accelerator.is_main_process:
            with optimisation.averaged():
                stage.picture(done)
    agreement.after(done, meter.sums)  # a signal may have come while the last checkpoint was written
    if number := agreement.settled().signal:
        accelerator.wait_for_everyone()  # a launcher ends all others as soon as one has ended
        raise StoppedError(
            f"{number.name}: saved after step {done} of {settings.steps}; the same command goes on", number
        )
    optimisation.take_average()
    stage.source.damage.report()
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
    "workers", "log_every", "save_every", "save_minutes", "keep", "sample_every", "micro_batch", "compile",
    "activation_checkpointing",
)  # fmt: skip
"""Settings that a run may be resumed with another value of."""


@dataclass(frozen=True)
class _Inputs:
    """The micro-batches of this process in a step, counted from 1."""

    step: int
    batches: list[Batch]


def _diverged(inputs: _Inputs, output: Path) -> DivergedError:
    """Writes the rows of a step, of this process, with their positions in the run's order, for study: the error."""
    rank = processes().process_index
    path = output.with_suffix(f".diverged{f'-{rank}' if rank else ''}.safetensors")
    tensors = {
        name: torch.cat([batch.columns[name] for batch in inputs.batches]) for name in inputs.batches[0].columns
    } | {"position": torch.tensor([position for batch in inputs.batches for position in batch.positions])}
    with whole_file(path) as partial:
        save_tensors(partial, tensors, metadata("diverged", {"step": inputs.step}, {}))
    processes().wait_for_everyone()  # a launcher ends all others as soon as one has ended
    kept = checkpoint.checkpoints(output)
    way_back = f"the last checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    return DivergedError(
        f"a loss or gradient was not finite in step {inputs.step}: stopped. Its inputs are in {path}; {way_back}"
    )


class _Meter:
    """Averages what the steps measure, and writes it.

    Values stay on the device between two lines of the log, so that no step waits for them.
    """

    def __init__(self, accelerator: Accelerator, settings: TrainingSettings, log: Path, first_step: int) -> None:
        self._accelerator, self._settings, self._log = accelerator, settings, log
        self.sums = torch.zeros(3, device=accelerator.device)
        """Of loss, squared error, gradient norm since the last line."""
        self._passes, self._step, self._clock = 0, first_step, time.perf_counter()

    def add(self, loss: Loss) -> None:
        self.sums[:2] += torch.stack([loss.value.detach(), loss.squared_error]).float()
        self._passes += 1

    def end_step(self, norm: Tensor) -> None:
        self.sums[2] += norm

    def write(self, step: int, rate: float) -> None:
        loss, error, norms = self._accelerator.reduce(self.sums, "mean").tolist()
        steps, seconds = step - self._step, time.perf_counter() - self._clock
        line = training_log.LogLine(
            step, loss / self._passes, error / self._passes, norms / steps, rate,
            steps * self._settings.batch_size / seconds,
        )  # fmt: skip
        if self._accelerator.is_main_process:
            training_log.append(self._log, line)
        if self._accelerator.log_with:
            self._accelerator.log({name: value for name, value in asdict(line).items() if name != "step"}, step=step)
        self.sums.zero_()
        self._passes, self._step, self._clock = 0, step, time.perf_counter()
