"""du/dt: the total derivative of the average velocity along the flow, dz = v dt, dr = 0. It carries no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from mfkit.flow.times import expand_to

if TYPE_CHECKING:
    from torch import Tensor

AverageVelocity = Callable[["Tensor", "Tensor", "Tensor", "Tensor"], "Tensor"]
"""(z (B, C, H, W), r (B,), t (B,), y (B,)) -> u (B, C, H, W)."""

Derivative = Callable[[AverageVelocity, "Tensor", "Tensor", "Tensor", "Tensor", "Tensor"], "Tensor"]
"""(u, z, r, t, y, v) -> du/dt (B, C, H, W). All its evaluations of u see the same labels y."""

DerivativeMethod = Literal["auto", "central", "jvp"]
"""``auto`` is the central difference in float32, and else the product, since a difference would be noise."""


def central_difference(step: float) -> Derivative:
    """(u(z + h v, r, t + h) - u(z - k v, r, t - k)) / (h + k), h = k = step away from the ends of time, in units of t.

    Near t = 1, h shrinks, and near t = r, k: no evaluation leaves r <= t <= 1, where u is trained.
    It is never taken in bfloat16, where the difference is below the rounding: autocast is off for it.
    """

    def estimate(u: AverageVelocity, z: Tensor, r: Tensor, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        import torch

        (z_ahead, later), (z_behind, earlier), width = neighbours(step, z, r, t, v)
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            return (u(z_ahead, r, later, y) - u(z_behind, r, earlier, y)) / expand_to(width, z)

    return estimate


def neighbours(
    step: float, z: Tensor, r: Tensor, t: Tensor, v: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """The points (z, t) ahead and behind between which the central difference is taken, and their distance in t."""
    import torch

    later, earlier = (t + step).clamp(max=1), torch.maximum(t - step, r)
    width = (later - earlier).clamp(min=torch.finfo(t.dtype).tiny)  # zero where r = t = 1
    return (z + expand_to(later - t, z) * v, later), (z - expand_to(t - earlier, z) * v, earlier), width


def jvp(u: AverageVelocity, z: Tensor, r: Tensor, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """The exact derivative: a Jacobian-vector product by forward-mode differentiation."""
    import torch

    with torch.no_grad():
        return torch.func.jvp(lambda z, t: u(z, r, t, y), (z, t), (v, torch.ones_like(t)))[1]
