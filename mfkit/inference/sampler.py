"""From noise to latents by a generator: a teacher's ODE is solved, a student's flow map is taken in a few steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfkit.config.settings import SampleSettings
from mfkit.errors import UsageError
from mfkit.flow.guidance import Guidance
from mfkit.flow.solvers import SOLVERS, TIME_GRIDS, few_step_sample, solve_ode, time_grid
from mfkit.models.generator import Generator

_TEACHER_NFE = 50
"""As in the papers; of a solver that cannot take just so many, the most below."""


@dataclass(frozen=True)
class Sampler:
    """From noise to latents."""

    sample: Callable[[Tensor, Tensor], Tensor]
    """(noise (B, C, H, W), labels (B,)) -> latents (B, C, H, W)."""
    conditions: dict[str, Any]
    """Of what it makes."""

    @torch.no_grad()
    def __call__(self, noise: Tensor, labels: Tensor) -> Tensor:
        return self.sample(noise, labels)


def sampler_of(
    network: Generator, settings: SampleSettings, time_shift: float, guidance: Guidance | None = None,
    class_dropout: float | None = None,
) -> Sampler:  # fmt: skip
    """The sampler of a generator.

    :param time_shift: the generator's own. :param class_dropout: see :meth:`Guidance.guided`.
    """
    guidance = guidance or Guidance()
    if network.kind == "student":
        return _flow_map_sampler(network, settings, guidance)
    return _ode_sampler(network, settings, time_shift, guidance, class_dropout)


def _ode_sampler(
    network: Generator, settings: SampleSettings, time_shift: float, guidance: Guidance, class_dropout: float | None
) -> Sampler:
    """The end of the teacher's ODE."""
    name = settings.solver or "euler"
    solver = SOLVERS[name]
    most = next(steps for steps in range(_TEACHER_NFE, 0, -1) if solver.evaluations(steps) <= _TEACHER_NFE)
    steps = solver.steps(settings.nfe, name) if settings.nfe else most
    shift = _shift(settings, time_shift)
    velocity = guidance.guided(network, network.config.num_classes, class_dropout)

    def sample(noise: Tensor, labels: Tensor) -> Tensor:
        times = time_grid(steps, shift, noise.device, name=settings.time_grid)
        return solve_ode(lambda z, t: velocity(z, t, labels), noise, times, name)[-1]

    conditions = {
        "nfe": solver.evaluations(steps), "solver": name, "time_grid": settings.time_grid, "time_shift": shift,
        "guidance": guidance.conditions,
    }  # fmt: skip
    return Sampler(sample, conditions)


def _flow_map_sampler(network: Generator, settings: SampleSettings, guidance: Guidance) -> Sampler:
    """Steps of the student's flow map, one evaluation each. The grid is shifted only where that is asked for."""
    if settings.solver is not None:
        raise UsageError("--solver is for a teacher's ODE; a student takes steps of its flow map")
    if guidance.conditions:
        raise UsageError("guidance is for a teacher; a student has what it was distilled with")
    nfe, shift = settings.nfe or 1, _shift(settings, 1.0)

    def sample(noise: Tensor, labels: Tensor) -> Tensor:
        times = time_grid(nfe, shift, noise.device, name=settings.time_grid)
        return few_step_sample(lambda z, r, t: network(z, r, t, labels), noise, times)

    conditions = {
        "nfe": nfe, "solver": "flow-map", "time_grid": settings.time_grid, "time_shift": shift, "guidance": None
    }  # fmt: skip
    return Sampler(sample, conditions)


def _shift(settings: SampleSettings, own: float) -> float:
    """The shift of the grid of times: ``own`` where the settings name none, 1 where the grid takes none."""
    if TIME_GRIDS[settings.time_grid].takes_shift:
        return settings.time_shift or own
    if settings.time_shift:
        raise UsageError(f"--time-shift does not move --time-grid {settings.time_grid}")
    return 1.0
