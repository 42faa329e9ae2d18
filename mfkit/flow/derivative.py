"""du/dt: the total derivative of the average velocity along the flow, dz = v dt, dr = 0. It carries no gradient."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mfkit.flow.times import per_row

AverageVelocity = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(z (B, C, H, W), r (B,), t (B,), y (B,)) -> u (B, C, H, W)."""

Derivative = Callable[[AverageVelocity, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(u, z, r, t, y, v) -> du/dt (B, C, H, W). All its evaluations of u see the same labels y."""

Method = Literal["central", "jvp"]


def derivative(method: Method, step: float) -> Derivative:
    """The named way to du/dt; ``step`` is the half-width of the central difference, in units of t."""
    return jvp if method == "jvp" else central_difference(step)


def central_difference(step: float) -> Derivative:
    """(u(z + h v, r, t + h) - u(z - k v, r, t - k)) / (h + k), h = k = step away from the ends of time.

    Near t = 1, h shrinks, and near t = r, k: no evaluation leaves r <= t <= 1, where u is trained.
    It is never taken in bfloat16, where the difference is below the rounding: autocast is off for it.
    """

    @torch.no_grad()
    def estimate(u: AverageVelocity, z: Tensor, r: Tensor, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        later, earlier = (t + step).clamp(max=1), torch.maximum(t - step, r)
        width = (later - earlier).clamp(min=torch.finfo(t.dtype).tiny)  # zero where r = t = 1
        with torch.autocast(z.device.type, enabled=False):
            ahead = u(z + per_row(later - t, z) * v, r, later, y)
            behind = u(z - per_row(t - earlier, z) * v, r, earlier, y)
        return (ahead - behind) / per_row(width, z)

    return estimate


@torch.no_grad()
def jvp(u: AverageVelocity, z: Tensor, r: Tensor, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """The exact derivative by forward-mode differentiation."""
    return torch.func.jvp(lambda z, t: u(z, r, t, y), (z, t), (v, torch.ones_like(t)))[1]
