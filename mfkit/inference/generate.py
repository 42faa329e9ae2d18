"""Latents and pictures from a trained generator: the same for a teacher and a student."""

import torch
from torch import Tensor

from mfkit.autoencoders.rae import RAE
from mfkit.autoencoders.vae import VAE
from mfkit.flow.solvers import Solver, jump, trajectory
from mfkit.flow.times import time_grid
from mfkit.models.dit import AverageVelocityDiT, DiT, VelocityDiT


@torch.no_grad()
def generate(network: DiT, noise: Tensor, labels: Tensor, *, steps: int, shift: float, solver: Solver) -> Tensor:
    """Standardised latents (B, C, H, W) from noise of that shape and labels (B,), in ``steps`` solver steps.

    A student jumps along its average velocity (the solver plays no part); a teacher's ODE is solved.
    """
    times = time_grid(steps, shift, noise.device)
    if isinstance(network, AverageVelocityDiT):
        return jump(lambda z, r, t: network(z, r, t, labels), noise, times)
    return trajectory(lambda z, t: network(z, t, labels), noise, times, solver)[-1]


@torch.no_grad()
def pictures(
    network: DiT, rae: RAE | VAE, noise: Tensor, labels: Tensor, *, steps: int, shift: float, solver: Solver = "euler"
) -> Tensor:
    """Images (B, 3, S, S) in [0, 1] from noise (B, C, H, W) and labels (B,)."""
    return rae.decode(generate(network, noise, labels, steps=steps, shift=shift, solver=solver))


def default_steps(network: DiT) -> int:
    """One step for a student, 50 for a teacher, as in the papers."""
    return 50 if isinstance(network, VelocityDiT) else 1
