"""Times of the flow, its straight path, and the shift of times towards noise. t = 0 is data, t = 1 is noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def default_time_shift(channels: int, height: int, width: int) -> float:
    """Shift factor s = sqrt(C H W / 4096), never below 1 (RAE, arXiv 2510.11690): 6.93 for (768, 16, 16)."""
    return max(1.0, math.sqrt(channels * height * width / 4096))


def shift_times(t: Tensor, shift: float) -> Tensor:
    """t' = s t / (1 + (s - 1) t): maps [0, 1] onto itself and, for s > 1, towards 1, the noise."""
    return shift * t / (1 + (shift - 1) * t)


def interpolate(x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The straight path: z_t = (1 - t) x + t e and its velocity e - x, both (B, C, H, W), at times t (B,)."""
    t = expand_to(t, x)
    return (1 - t) * x + t * noise, noise - x


def expand_to(values: Tensor, like: Tensor) -> Tensor:
    """(B,) values as (B, 1, ..., 1), to multiply a tensor of ``like``'s rank, in its dtype."""
    return values.view(-1, *[1] * (like.ndim - 1)).to(like.dtype)
