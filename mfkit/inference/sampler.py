"""From noise to latents by a generator: a teacher's ODE is solved, a student's flow map is taken in a few steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfkit.config.settings import SampleSettings
from mfkit.errors import UsageError
from mfkit.flow.guidance import Velocity
from mfkit.flow.solvers import SOLVERS, TIME_GRIDS, FreshNoise, few_step_sample, solve, time_grid
from mfkit.models.generator import Generator

_TEACHER_NFE = 50
"""As in the papers; of a solver that cannot take just so many, the most below."""


@dataclass(frozen=True)
class Sampler:
    """From noise to latents."""

    sample: Callable[[Tensor, Tensor, FreshNoise], Tensor]
    """(noise (B, C, H, W), labels (B,), noise of a stochastic solver's steps) -> latents (B, C, H, W)."""
    conditions: dict[str, Any]
    """Of what it makes."""

    @torch.no_grad()
    def __call__(self, noise: Tensor, labels: Tensor, fresh: FreshNoise | None = None) -> Tensor:
        """:param fresh: by default that of torch's own generator."""
        return self.sample(noise, labels, fresh or (lambda step: torch.randn_like(noise)))


def sampler_of(
    network: Generator, settings: SampleSettings, time_shift: float, velocity: Velocity | None = None,
    times: Sequence[float] | None = None,
) -> Sampler:  # fmt: skip
    """The sampler of a generator.

    :param time_shift: the generator's own. :param velocity: the teacher's under guidance; by default its own.
    :param times: descending from 1 to 0, in the place of the grid that the settings name.
    """
    if times and (settings.nfe or settings.time_shift or settings.time_grid != SampleSettings.time_grid):
        raise UsageError("--times says all of the grid: leave out --nfe, --time-grid and --time-shift")
    if network.kind == "student":
        return _flow_map_sampler(network, settings, times)
    return _ode_sampler(velocity or network, settings, time_shift, times)


def _ode_sampler(
    velocity: Velocity, settings: SampleSettings, time_shift: float, times: Sequence[float] | None
) -> Sampler:
    """The end of the teacher's ODE."""
    name = settings.solver or "euler"
    solver = SOLVERS[name]
    most = next(steps for steps in range(_TEACHER_NFE, 0, -1) if solver.evaluations(steps) <= _TEACHER_NFE)
    steps = solver.steps(settings.nfe, name) if settings.nfe else most
    grid = _Grid(times, settings, steps, time_shift)

    def sample(noise: Tensor, labels: Tensor, fresh: FreshNoise) -> Tensor:
        return solve(lambda z, t: velocity(z, t, labels), noise, grid.on(noise.device), name, fresh)[-1]

    return Sampler(sample, {"nfe": solver.evaluations(grid.steps), "solver": name, **grid.conditions})


def _flow_map_sampler(network: Generator, settings: SampleSettings, times: Sequence[float] | None) -> Sampler:
    """Steps of the student's flow map, one evaluation each. The grid is shifted only where that is asked for."""
    if settings.solver is not None:
        raise UsageError("--solver is for a teacher's ODE; a student takes steps of its flow map")
    grid = _Grid(times, settings, settings.nfe or 1, 1.0)

    def sample(noise: Tensor, labels: Tensor, fresh: FreshNoise) -> Tensor:
        return few_step_sample(lambda z, r, t: network(z, r, t, labels), noise, grid.on(noise.device))

    return Sampler(sample, {"nfe": grid.steps, "solver": "flow-map", **grid.conditions})


class _Grid:
    """Where a sampler stops: times that were given, or a grid of the table."""

    def __init__(self, times: Sequence[float] | None, settings: SampleSettings, steps: int, time_shift: float) -> None:
        """:param time_shift: where the settings name none."""
        self._times, self._name = times, settings.time_grid
        self.steps = len(times) - 1 if times else steps
        self._shift = 1.0 if times else _shift(settings, time_shift)
        own = {"time_grid": self._name, "time_shift": self._shift}
        self.conditions = {"time_grid": "file", "times": list(times)} if times else own

    def on(self, device: torch.device) -> Tensor:
        """(S + 1,), descending from 1 to 0."""
        if self._times:
            return torch.tensor(self._times, device=device)
        return time_grid(self.steps, self._shift, device, name=self._name)


def _shift(settings: SampleSettings, own: float) -> float:
    """The shift of the grid of times: ``own`` where the settings name none, 1 where the grid takes none."""
    if TIME_GRIDS[settings.time_grid].takes_shift:
        return settings.time_shift or own
    if settings.time_shift:
        raise UsageError(f"--time-shift does not move --time-grid {settings.time_grid}")
    return 1.0
