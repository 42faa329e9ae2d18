"""What all processes must know alike after a step: whether to stop, to save, or that a number is not finite."""

import time
from dataclasses import dataclass
from signal import Signals

import torch
from torch import Tensor

from mfkit.runtime.distributed import processes
from mfkit.training.signals import Asked


@dataclass(frozen=True)
class Verdict:
    """What holds in any process, hence in all."""

    diverged: int | None = None
    """The step whose loss or gradient was not finite."""
    signal: Signals | None = None
    """A signal that asks to save and leave."""
    save: bool = False
    """It is time for a checkpoint by the clock."""


class Agreement:
    """One verdict for all processes after each step.

    On a GPU it is that of the step before, so that no step waits for the device; :meth:`settled` waits.
    """

    def __init__(self, asked: Asked, save_minutes: float) -> None:
        """:param save_minutes: between two checkpoints; 0 has none by the clock."""
        self._asked, self._seconds = asked, 60 * save_minutes
        self._state = processes()
        self._saved = time.monotonic()
        self._pending: tuple[int, Tensor, torch.cuda.Event | None] | None = None
        self._verdict = Verdict()

    def after(self, step: int, measured: Tensor) -> Verdict:
        """Takes what this process measured in a step, counted from 1: numbers that must be finite."""
        due = self._seconds > 0 and time.monotonic() - self._saved >= self._seconds
        told = torch.tensor([self._asked.signal or 0, due], dtype=torch.float32)
        device = measured.device
        on_gpu = device.type == "cuda"
        told = (told.pin_memory() if on_gpu else told).to(device, non_blocking=True)
        flags = torch.cat([told, (~measured.isfinite()).any()[None].float()])
        if self._state.num_processes > 1:
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        if on_gpu:
            verdict = self.settled()
            host = torch.empty_like(flags, device="cpu", pin_memory=True)
            host.copy_(flags, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending = step, host, event
            return verdict
        self._pending = step, flags, None
        return self.settled()

    def settled(self) -> Verdict:
        """The verdict of all steps so far."""
        if self._pending is not None:
            step, flags, event = self._pending
            if event is not None:
                event.synchronize()
            number, due, diverged = flags.tolist()
            before = self._verdict
            self._verdict = Verdict(
                diverged=before.diverged or (step if diverged else None),
                signal=before.signal or (Signals(int(number)) if number else None),
                save=before.save or bool(due),
            )
            self._pending = None
        return self._verdict

    def saved(self) -> None:
        """A checkpoint has been written now."""
        self._saved = time.monotonic()
        self._verdict = Verdict(diverged=self._verdict.diverged, signal=self._verdict.signal)
