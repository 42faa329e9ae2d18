"""Solvers of the teacher's ODE, grids of times, and the few-step sampler of a student's flow map.

A solver or a grid is one entry of the table :data:`SOLVERS` or :data:`TIME_GRIDS`; the command line, the help, the
count of evaluations and the conditions of samples read the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from mfkit.errors import UsageError
from mfkit.flow.times import expand_to, shift_times

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VelocityField = Callable[["Tensor", "Tensor"], "Tensor"]
"""(z (B, C, H, W), t (B,)) -> dz/dt (B, C, H, W), for labels that are already chosen."""

AverageVelocityField = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""(z (B, C, H, W) at time t, r (B,), t (B,)) -> the average velocity over [r, t]."""


FreshNoise = Callable[[int], "Tensor"]
"""Number of a step -> standard normal draws (B, C, H, W)."""


@dataclass(frozen=True)
class Solver:
    """A numerical method for dz/dt = v(z, t), or for a stochastic equation of the same marginals."""

    states: Callable[..., Iterator[Tensor]]
    """(v, z at times[0], descending times (S + 1,)) -> the states at times[1:], one after the other. A stochastic one
    takes :data:`FreshNoise` besides."""
    evaluations: Callable[[int], int]
    """Network evaluations (NFE) of so many steps down to t = 0."""
    stochastic: bool = False

    def steps(self, nfe: int, name: str) -> int:
        """The steps that ``nfe`` network evaluations are.

        :raises UsageError: no number of steps takes so many.
        """
        steps = next(steps for steps in range(1, nfe + 2) if self.evaluations(steps) >= nfe)
        if self.evaluations(steps) != nfe:
            near = sorted({self.evaluations(max(1, steps - 1)), self.evaluations(steps)})
            raise UsageError(f"--nfe {nfe}: no number of steps of {name} takes it; the nearest are {near}")
        return steps


def _euler(velocity: VelocityField, z: Tensor, times: Tensor) -> Iterator[Tensor]:
    """z_r = z_t + (r - t) v(z_t, t)."""
    batch = z.new_ones(len(z))
    for t, r in pairwise(times):
        z = z + (r - t) * velocity(z, t * batch)
        yield z


def _heun(velocity: VelocityField, z: Tensor, times: Tensor) -> Iterator[Tensor]:
    """The mean of the slopes at t and at Euler's z_r; a step that ends at t = 0 is Euler's (EDM, arXiv 2206.00364)."""
    batch = z.new_ones(len(z))
    for t, r in pairwise(times):
        slope = velocity(z, t * batch)
        if r > 0:
            slope = (slope + velocity(z + (r - t) * slope, r * batch)) / 2
        z = z + (r - t) * slope
        yield z


def _midpoint(velocity: VelocityField, z: Tensor, times: Tensor) -> Iterator[Tensor]:
    """The slope half-way, at z_t + (r - t)/2 v(z_t, t); RF-Solver's second-order step (arXiv 2411.04746) is the same.

    Its z_t + (r - t) v + (r - t)^2/2 v', with v' = (v_half - v) / ((r - t)/2), is z_t + (r - t) v_half.
    """
    batch = z.new_ones(len(z))
    for t, r in pairwise(times):
        half = z + (r - t) / 2 * velocity(z, t * batch)
        z = z + (r - t) * velocity(half, (t + r) / 2 * batch)
        yield z


def _adams_bashforth(velocity: VelocityField, z: Tensor, times: Tensor) -> Iterator[Tensor]:
    """The slope of a line through the last two, v + h / (2 h') (v - v') for steps h after h'; the first is Euler's."""
    batch = z.new_ones(len(z))
    last: tuple[Tensor, Tensor] | None = None
    for t, r in pairwise(times):
        v = velocity(z, t * batch)
        slope = v if last is None else v + (r - t) / (2 * last[1]) * (v - last[0])
        last = v, r - t
        z = z + (r - t) * slope
        yield z


def _stochastic(diffusion: Callable[[Tensor], Tensor]) -> Callable[..., Iterator[Tensor]]:
    """Euler-Maruyama for dz = (v - w s) dt + sqrt(2 w) dW, backwards in t, by the score s = -(z + (1 - t) v) / t.

    Its marginals are those of dz/dt = v for any diffusion w(t) (SiT, arXiv 2401.08740). The last step, to t = 0, is
    Euler's for w = 0: it adds no noise.
    """

    def states(velocity: VelocityField, z: Tensor, times: Tensor, fresh: FreshNoise) -> Iterator[Tensor]:
        batch = z.new_ones(len(z))
        for step, (t, r) in enumerate(pairwise(times)):
            v, h = velocity(z, t * batch), t - r
            if r > 0:
                w = diffusion(t)
                score = -(z + (1 - t) * v) / t
                z = z - h * v + h * w * score + (2 * w * h).sqrt() * fresh(step)
            else:
                z = z - h * v
            yield z

    return states


SOLVERS = {
    "euler": Solver(_euler, lambda steps: steps),
    "heun": Solver(_heun, lambda steps: 2 * steps - 1),
    "midpoint": Solver(_midpoint, lambda steps: 2 * steps),
    "ab2": Solver(_adams_bashforth, lambda steps: steps),
    "sde": Solver(_stochastic(lambda t: t), lambda steps: steps, stochastic=True),
    "sde-constant": Solver(_stochastic(lambda t: t.new_ones(())), lambda steps: steps, stochastic=True),
    "sde-falling": Solver(_stochastic(lambda t: 1 - t), lambda steps: steps, stochastic=True),
}
"""``ab2`` is Adams-Bashforth's; ``sde`` has the diffusion t, the others 1 and 1 - t."""

ODE_SOLVERS = [name for name, solver in SOLVERS.items() if not solver.stochastic]


def _uniform(steps: int, device: torch.device | None) -> Tensor:
    import torch

    return torch.linspace(1, 0, steps + 1, device=device)


@dataclass(frozen=True)
class TimeGrid:
    """Times at which a solver stops."""

    times: Callable[[int, float, torch.device | None], Tensor]
    """(steps, time shift, device) -> (steps + 1,) descending times from 1 to 0, float32."""
    takes_shift: bool = True
    """Whether the time shift moves it."""


TIME_GRIDS = {
    # Uniform before the shift, as the times of training are.
    "shifted": TimeGrid(lambda steps, shift, device: shift_times(_uniform(steps, device), shift)),
    "uniform": TimeGrid(lambda steps, shift, device: _uniform(steps, device), takes_shift=False),
}


def time_grid(steps: int, shift: float, device: torch.device | None = None, *, name: str = "shifted") -> Tensor:
    """The times of a grid by its name in the table."""
    return TIME_GRIDS[name].times(steps, shift, device)


def solve(
    velocity: VelocityField, noise: Tensor, times: Tensor, solver: str = "euler", fresh: FreshNoise | None = None
) -> Tensor:
    """All states of dz/dt = v(z, t), z(times[0]) = noise.

    :param noise: (B, C, H, W). :param times: (S + 1,), descending. :param fresh: for a stochastic solver.
    :returns: (S + 1, B, C, H, W), the states at ``times``.
    """
    import torch

    method = SOLVERS[solver]
    return torch.stack([noise, *method.states(velocity, noise, times, *([fresh] if method.stochastic else []))])


def few_step_sample(average_velocity: AverageVelocityField, noise: Tensor, times: Tensor) -> Tensor:
    """z_r = z_t - (t - r) u(z_t, r, t) along descending times (S + 1,); one step is x = z_1 - u(z_1, 0, 1).

    Sampling by the flow map of mean flow (arXiv 2505.13447).

    :returns: (B, C, H, W), the state at the last time.
    """
    z, batch = noise, noise.new_ones(len(noise))
    for t, r in pairwise(times):
        z = z - expand_to((t - r) * batch, z) * average_velocity(z, r * batch, t * batch)
    return z
