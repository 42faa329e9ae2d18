"""The one training loop. A task says which network, which data and which loss; the loop does the rest."""

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mfkit.artifacts.artifact import Provenance, metadata
from mfkit.artifacts.atomic import atomic_write
from mfkit.artifacts.safetensors_files import write_tensors
from mfkit.config.settings import TrainingSettings
from mfkit.data.loader import Batch, BatchSharding, train_batches
from mfkit.errors import DivergedError, StoppedError, UsageError
from mfkit.flow.objectives.base import Loss
from mfkit.runtime.distributed import processes
from mfkit.runtime.precision import matmul_precision
from mfkit.runtime.progress import progress
from mfkit.training import checkpoint
from mfkit.training import log as training_log
from mfkit.training.signals import StopRequest, graceful_stop
from mfkit.training.step_status import StepStatus
from mfkit.training.task import RunOptions, Task, run_path
from mfkit.training.train_state import TrainState

logger = logging.getLogger(__name__)


def train(task: Task, options: RunOptions) -> None:
    """Trains ``task.network`` to the last step, from the run's checkpoint where there is one.

    :raises DivergedError: a loss or gradient is not finite; the last checkpoint stays, the step's inputs are kept.
    :raises StoppedError: a signal asked to stop; the step was finished and saved.
    """
    with matmul_precision(task.settings.precision, processes().device), graceful_stop() as request:
        _train(task, options, request)


def _train(task: Task, options: RunOptions, request: StopRequest) -> None:
    settings, output, world = task.settings, run_path(options, task), processes()
    sharding, pieces = _sharding(task, world.process_index, world.num_processes)
    train_state = TrainState(
        task.network, task.blocks, settings,
        accumulation=sharding.accumulation * pieces, trackers=options.trackers, folder=output.parent,
    )  # fmt: skip
    accelerator, trained = train_state.accelerator, {"": train_state}
    adversary = task.adversary
    if adversary:
        if train_state.sharded:
            raise UsageError("--discriminator is not trained under FSDP")
        trained["adversary."] = TrainState(
            adversary.network, adversary.blocks, adversary.settings, accumulation=sharding.accumulation * pieces
        )
    if train_state.sharded and settings.sample_every:
        raise UsageError("--sample-every samples in one process, which has a part of the weights only under FSDP")
    if train_state.sharded and task.measure_every:
        raise UsageError("--fid-every samples in each process, which has a part of the weights only under FSDP")
    log = output.with_suffix(".log.jsonl")
    resume_key = {name: value for name, value in asdict(settings).items() if name not in _MAY_CHANGE} | task.resume_key
    first_step = 0
    if options.restart:
        if accelerator.is_main_process:
            checkpoint.remove_checkpoints(output)
        accelerator.wait_for_everyone()
    kept = checkpoint.checkpoints(output)
    if len({str(part) for part in gather_object([kept])}) > 1:
        raise UsageError(f"{output.parent}: not all processes see the same checkpoints there; it must be shared")
    if kept:
        first_step = checkpoint.restore(kept[-1], resume_key, trained, task.state)
        logger.info("resuming from %s, step %d", kept[-1], first_step)
    elif task.begin:
        task.begin()
    logger.info("the log is %s", log)
    if accelerator.is_main_process:
        log.parent.mkdir(parents=True, exist_ok=True)
        training_log.truncate(log, first_step)
        if options.trackers:
            plain = {
                name: value if isinstance(value, str | int | float) else str(value)
                for name, value in resume_key.items()
            }  # all that TensorBoard takes
            accelerator.init_trackers(output.stem, config=plain)
    accelerator.wait_for_everyone()

    meter, status = _Meter(accelerator, settings, log, first_step), StepStatus(request, settings.save_minutes)
    recent: deque[tuple[int, list[Batch]]] = deque(maxlen=2)  # steps, counted from 1, and this process's part of them
    done = first_step
    batches = train_batches(
        task.data, sharding, first_step=first_step, last_step=settings.steps, seed=settings.seed,
        workers=settings.workers,
    )  # fmt: skip
    for step in progress(range(first_step, settings.steps), initial=first_step, total=settings.steps):
        done = step + 1
        micro_batches = list(islice(batches, sharding.accumulation))
        recent.append((done, micro_batches))
        norm, rate = train_state.step(step, micro_batches, task.loss, meter.add, pieces)
        norms = [norm]
        if adversary and step >= adversary.first_step:
            norms.append(
                trained["adversary."].step(step, micro_batches, adversary.loss, meter.add_adversary, pieces)[0]
            )
        if task.after_step:
            task.after_step()
        meter.end_step(norm)
        regular = done == settings.steps or done % settings.save_every == 0
        measured = task.measure_every and done % task.measure_every == 0
        logged = measured or done % settings.log_every == 0
        status.after_step(done, torch.cat([meter.sums, torch.stack(norms)]))
        if regular or status.save or status.signal or logged:
            status.wait()
        if status.diverged:
            raise _diverged(status.diverged, dict(recent)[status.diverged], output)
        to_save = regular or status.save or status.signal is not None
        if to_save or logged:
            if task.measure and measured:
                with meter.paused():
                    for decay in train_state.averages:
                        with train_state.with_ema(decay):
                            name = "fid" if decay == settings.ema[0] else f"fid.{decay}"
                            meter.figures[name] = task.measure()
            line = meter.write(done, rate)
            logger.debug("step %d of %d: loss %.4g, mse %.4g", done, settings.steps, line.loss, line.mse)
        if to_save:
            task.data.skips.sync()
            checkpoint.save(output, done, resume_key, trained, task.state, keep=settings.keep)
            status.saved()
        if status.signal:
            break
        drawn = task.draw_grid and settings.sample_every and done % settings.sample_every == 0
        if task.draw_grid and drawn and accelerator.is_main_process:
            with train_state.with_ema(settings.ema[0]):
                task.draw_grid(done)
    status.after_step(done, meter.sums)  # a signal may have come while the last checkpoint was written
    status.wait()
    if number := status.signal:
        accelerator.wait_for_everyone()  # a launcher ends all others as soon as one has ended
        raise StoppedError(
            f"{number.name}: saved after step {done} of {settings.steps}; run the same command to resume", number
        )
    for decay in settings.ema[1:]:
        assert task.save is not None
        with train_state.with_ema(decay):
            task.save(output.with_suffix(f".ema-{decay}.safetensors"))
    train_state.take_ema()
    task.data.skips.report()
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    task.network.eval()


def _sharding(task: Task, rank: int, processes: int) -> tuple[BatchSharding, int]:
    """Shares of the data's samples, and the pieces of a micro-batch whose rows the loss takes together."""
    batch_size, per_sample = task.settings.batch_size, task.rows_per_sample
    if batch_size % per_sample:
        raise UsageError(f"--batch-size {batch_size} does not divide by the {per_sample} rows that a sample becomes")
    samples = batch_size // per_sample
    share = per_sample * max(1, samples // processes)
    rows = task.settings.micro_batch or share
    together = {"none": rows, "sample": max(rows, per_sample), "step": share}[task.coupling]
    if together % rows or together % per_sample:
        raise UsageError(f"--micro-batch {rows} does not go into {together} rows of {per_sample} a sample")
    return BatchSharding(samples, together // per_sample, rank, processes), together // rows


_MAY_CHANGE = (
    "workers", "log_every", "save_every", "save_minutes", "keep", "sample_every", "fid_every",
    "micro_batch", "compile", "activation_checkpointing",
)  # fmt: skip
"""Settings that a run may be resumed with another value of."""


def _diverged(step: int, batches: list[Batch], output: Path) -> DivergedError:
    """Writes the samples of a step, of this process, with their positions in the run's order, for study."""
    rank = processes().process_index
    path = output.with_suffix(f".diverged{f'-{rank}' if rank else ''}.safetensors")
    tensors = {name: torch.cat([batch.columns[name] for batch in batches]) for name in batches[0].columns}
    tensors["position"] = torch.tensor([position for batch in batches for position in batch.positions])
    with atomic_write(path) as partial:
        write_tensors(partial, tensors, metadata("diverged", {"step": step}, Provenance()))
    processes().wait_for_everyone()  # a launcher ends all others as soon as one has ended
    kept = checkpoint.checkpoints(output)
    way_back = f"the last checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    return DivergedError(
        f"a loss or gradient was not finite in step {step}: stopped. Its inputs are in {path}; {way_back}"
    )


class _Meter:
    """Averages what the steps compute, and writes it to the log.

    Values stay on the device between two lines of the log, so that no step waits for them.
    """

    def __init__(self, accelerator: Accelerator, settings: TrainingSettings, log: Path, first_step: int) -> None:
        self._accelerator, self._settings, self._log = accelerator, settings, log
        self.sums = torch.zeros(3, device=accelerator.device)
        """Of loss, squared error, gradient norm since the last line."""
        self._parts: dict[str, Tensor] = {}
        self.figures: dict[str, float] = {}
        """Of the network as it is, for the next line."""
        self._micro_batches, self._step, self._clock = 0, first_step, time.perf_counter()

    def add(self, loss: Loss) -> None:
        self.sums[:2] += torch.stack([loss.value.detach(), loss.mse]).float()
        self._add_parts(loss.parts)
        self._micro_batches += 1

    def add_adversary(self, loss: Loss) -> None:
        self._add_parts({"discriminator": loss.value})

    def _add_parts(self, parts: Mapping[str, Tensor]) -> None:
        for name, value in parts.items():
            self._parts[name] = self._parts.get(name, 0) + value.detach().float()

    def end_step(self, norm: Tensor) -> None:
        self.sums[2] += norm

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile is no time of training."""
        began = time.perf_counter()
        yield
        self._clock += time.perf_counter() - began

    def write(self, step: int, rate: float) -> training_log.LogLine:
        sums = torch.stack([*self.sums, *self._parts.values()])
        loss, error, norms, *parts = self._accelerator.reduce(sums, "mean").tolist()
        steps, seconds = step - self._step, time.perf_counter() - self._clock
        line = training_log.LogLine(
            step, loss / self._micro_batches, error / self._micro_batches, norms / steps, rate,
            steps * self._settings.batch_size / seconds,
            {name: value / self._micro_batches for name, value in zip(self._parts, parts, strict=True)} | self.figures,
        )  # fmt: skip
        if self._accelerator.is_main_process:
            training_log.append(self._log, line)
        if self._accelerator.log_with:
            self._accelerator.log({name: value for name, value in line.items() if name != "step"}, step=step)
        self.sums.zero_()
        self._parts.clear()
        self.figures.clear()
        self._micro_batches, self._step, self._clock = 0, step, time.perf_counter()
        return line
