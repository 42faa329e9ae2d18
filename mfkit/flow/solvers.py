"""Solvers from noise to data: the velocity's ODE for a teacher, jumps of the average velocity for a student."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mfkit.flow.times import per_row

VelocityField = Callable[[Tensor, Tensor], Tensor]
"""(z (B, C, H, W), t (B,)) -> dz/dt (B, C, H, W), for labels that are already chosen."""

AverageVelocityField = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z (B, C, H, W) at time t, r (B,), t (B,)) -> the average velocity over [r, t]."""

Solver = Literal["euler", "heun"]


def trajectory(velocity: VelocityField, noise: Tensor, times: Tensor, solver: Solver = "euler") -> Tensor:
    """All states of dz/dt = v(z, t), z(times[0]) = noise.

    :param noise: (B, C, H, W), the state at the first time.
    :param times: (S + 1,), descending.
    :param solver: ``euler`` evaluates v once a step; ``heun`` twice, but once in the last step, where it is Euler's.
    :returns: (S + 1, B, C, H, W), the states at ``times``.
    """
    states = [noise]
    for t, r in zip(times[:-1], times[1:], strict=True):
        z, rows = states[-1], torch.ones(len(noise), device=noise.device)
        slope = velocity(z, t * rows)
        if solver == "heun" and r > 0:
            slope = (slope + velocity(z + (r - t) * slope, r * rows)) / 2
        states.append(z + (r - t) * slope)
    return torch.stack(states)


def evaluations(steps: int, solver: Solver) -> int:
    """Network evaluations per image (NFE) of so many solver steps down to t = 0."""
    return steps if solver == "euler" else 2 * steps - 1


def jump(average_velocity: AverageVelocityField, noise: Tensor, times: Tensor) -> Tensor:
    """z_r = z_t - (t - r) u(z_t, r, t) along a descending grid of times (S + 1,); one step is x = z_1 - u(z_1, 0, 1).

    :returns: (B, C, H, W), the state at the last time.
    """
    z, rows = noise, torch.ones(len(noise), device=noise.device)
    for t, r in zip(times[:-1], times[1:], strict=True):
        z = z - per_row((t - r) * rows, z) * average_velocity(z, r * rows, t * rows)
    return z
