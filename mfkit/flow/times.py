"""Times of the flow: the shift towards noise, time grids, and draws for training. t = 0 is data, t = 1 is noise."""

import math

import torch
from torch import Tensor


def time_shift(channels: int, height: int, width: int) -> float:
    """Shift factor s = sqrt(C H W / 4096), never below 1 (RAE, arXiv 2510.11690): 6.93 for (768, 16, 16)."""
    return max(1.0, math.sqrt(channels * height * width / 4096))


def shifted(t: Tensor, shift: float) -> Tensor:
    """t' = s t / (1 + (s - 1) t): maps [0, 1] onto itself and, for s > 1, towards 1, the noise."""
    return shift * t / (1 + (shift - 1) * t)


def time_grid(steps: int, shift: float, device: torch.device | str | None = None) -> Tensor:
    """(steps + 1,) descending times from 1 to 0, uniform before the shift. float32."""
    return shifted(torch.linspace(1, 0, steps + 1, device=device), shift)


def interval(uniform_a: Tensor, uniform_b: Tensor, shift: float, instantaneous: Tensor) -> tuple[Tensor, Tensor]:
    """Ordered times r <= t for mean-flow training, from two uniform draws in [0, 1], each (B,).

    Where ``instantaneous`` (B,) is true, r = t.
    """
    a, b = shifted(uniform_a, shift), shifted(uniform_b, shift)
    t = torch.maximum(a, b)
    return torch.where(instantaneous, t, torch.minimum(a, b)), t


def interpolate(x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The straight path: z_t = (1 - t) x + t e and its velocity e - x, both (B, C, H, W), at times t (B,)."""
    t = per_row(t, x)
    return (1 - t) * x + t * noise, noise - x


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """(B,) values as (B, 1, ..., 1), to multiply a tensor of ``like``'s rank."""
    return values.view(-1, *[1] * (like.ndim - 1)).to(like.dtype)
