"""What all processes must know alike after a step: whether to stop, to save, or that a number is not finite."""

import time
from signal import Signals

import torch
from torch import Tensor

from mfkit.runtime.distributed import processes
from mfkit.training.signals import StopRequest


class StepStatus:
    """What holds in any process, hence in all, after each step.

    On a GPU it is that of the step before, so that no step waits for the device; :meth:`wait` does.
    """

    diverged: int | None = None
    """The step whose loss or gradient was not finite."""
    signal: Signals | None = None
    """A signal that asks to save and stop."""
    save = False
    """It is time for a checkpoint by the clock."""

    def __init__(self, request: StopRequest, save_minutes: float) -> None:
        """:param save_minutes: between two checkpoints; 0 has none by the clock."""
        self._request, self._seconds = request, 60 * save_minutes
        self._processes = processes()
        self._last_save = time.monotonic()
        self._pending: tuple[int, Tensor, torch.cuda.Event | None] | None = None

    def after_step(self, step: int, values: Tensor) -> None:
        """Takes what this process computed in a step, counted from 1: numbers that must be finite."""
        due = self._seconds > 0 and time.monotonic() - self._last_save >= self._seconds
        own = torch.tensor([self._request.signal or 0, due], dtype=torch.float32)
        device = values.device
        on_gpu = device.type == "cuda"
        own = (own.pin_memory() if on_gpu else own).to(device, non_blocking=True)
        flags = torch.cat([own, (~values.isfinite()).any()[None].float()])
        if self._processes.num_processes > 1:
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        if not on_gpu:
            self._pending = step, flags, None
            self.wait()
            return
        self.wait()
        host = torch.empty_like(flags, device="cpu", pin_memory=True)
        host.copy_(flags, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = step, host, event

    def wait(self) -> None:
        """Makes it the status of all steps so far."""
        if self._pending is None:
            return
        step, flags, event = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        number, due, diverged = flags.tolist()
        self.diverged = self.diverged or (step if diverged else None)
        self.signal = self.signal or (Signals(int(number)) if number else None)
        self.save = self.save or bool(due)

    def saved(self) -> None:
        """A checkpoint has been written now."""
        self._last_save, self.save = time.monotonic(), False
