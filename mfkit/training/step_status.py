"""What all processes must know alike after a step: whether to stop, to save, or that a number is not finite."""

import time
from dataclasses import dataclass
from signal import Signals

import torch
from torch import Tensor

from mfkit.runtime.distributed import processes
from mfkit.training.signals import StopRequest


@dataclass(frozen=True)
class StepStatus:
    """What holds in any process, hence in all."""

    diverged: int | None = None
    """The step whose loss or gradient was not finite."""
    signal: Signals | None = None
    """A signal that asks to save and stop."""
    save: bool = False
    """It is time for a checkpoint by the clock."""


class StatusSync:
    """One status for all processes after each step.

    On a GPU it is that of the step before, so that no step waits for the device; :meth:`wait` does.
    """

    def __init__(self, request: StopRequest, save_minutes: float) -> None:
        """:param save_minutes: between two checkpoints; 0 has none by the clock."""
        self._request, self._seconds = request, 60 * save_minutes
        self._processes = processes()
        self._last_save = time.monotonic()
        self._pending: tuple[int, Tensor, torch.cuda.Event | None] | None = None
        self._status = StepStatus()

    def after_step(self, step: int, values: Tensor) -> StepStatus:
        """Takes what this process computed in a step, counted from 1: numbers that must be finite."""
        due = self._seconds > 0 and time.monotonic() - self._last_save >= self._seconds
        own = torch.tensor([self._request.signal or 0, due], dtype=torch.float32)
        device = values.device
        on_gpu = device.type == "cuda"
        own = (own.pin_memory() if on_gpu else own).to(device, non_blocking=True)
        flags = torch.cat([own, (~values.isfinite()).any()[None].float()])
        if self._processes.num_processes > 1:
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        if on_gpu:
            status = self.wait()
            host = torch.empty_like(flags, device="cpu", pin_memory=True)
            host.copy_(flags, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending = step, host, event
            return status
        self._pending = step, flags, None
        return self.wait()

    def wait(self) -> StepStatus:
        """The status of all steps so far."""
        if self._pending is not None:
            step, flags, event = self._pending
            if event is not None:
                event.synchronize()
            number, due, diverged = flags.tolist()
            before = self._status
            self._status = StepStatus(
                diverged=before.diverged or (step if diverged else None),
                signal=before.signal or (Signals(int(number)) if number else None),
                save=before.save or bool(due),
            )
            self._pending = None
        return self._status

    def saved(self) -> None:
        """A checkpoint has been written now."""
        self._last_save = time.monotonic()
        self._status = StepStatus(diverged=self._status.diverged, signal=self._status.signal)
