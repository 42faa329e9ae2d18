"""Weights of a row by its interval, r < t, and by how far the run is: one entry of the table each."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import pi
from typing import TYPE_CHECKING, NamedTuple

from mfkit.flow.times import shift_times

if TYPE_CHECKING:
    from torch import Tensor


class Interval(NamedTuple):
    """What a weight may depend on, (B,) each."""

    r: Tensor
    t: Tensor
    progress: Tensor
    """How far the run is, in [0, 1)."""
    mean_length: float
    """Mean of t - r over the rows with r < t."""


def _short_first(i: Interval) -> Tensor:
    """k + (1 - k) (1 - d) / E[1 - d], d = t - r, k the progress: short intervals first (arXiv 2511.19065)."""
    return i.progress + (1 - i.progress) * (1 - (i.t - i.r)) / (1 - i.mean_length)


def _temf(i: Interval) -> Tensor:
    """1 / ((1 + d / 2) sqrt(1 + d^2)), d = t - r (TEMF, CVPR 2026)."""
    length = i.t - i.r
    return 1 / ((1 + length / 2) * (1 + length.square()).sqrt())


def _tim(i: Interval) -> Tensor:
    """1 / sqrt(tan t - tan r + 1), times in radians (TiM, arXiv 2509.04394)."""
    return (i.t.tan() - i.r.tan() + 1).rsqrt()


def _facm(i: Interval) -> Tensor:
    """sin(pi t / 2) (FACM, arXiv 2507.03738, times turned round).

    FACM takes a share 1 - sqrt(1 - t) of the correction. By its power of the loss, ``norm_p`` 0.5, the share cancels in
    the gradient, but for the eps of it.
    """
    return (i.t * (pi / 2)).sin()


INTERVAL_WEIGHTS: dict[str, Callable[[Interval], Tensor] | None] = {
    "none": None,
    "short-first": _short_first,
    "temf": _temf,
    "tim": _tim,
    "facm": _facm,
}


@lru_cache
def mean_length(time_shift: float, ratio_to_data: float) -> float:
    """Mean of t - r, where t is the later of two uniform times, shifted, and r the other or, in a share of rows, 0."""
    u, times = _midpoints(time_shift)
    later, earlier = float((2 * u * times).mean()), float((2 * (1 - u) * times).mean())
    return later - (1 - ratio_to_data) * earlier


@lru_cache
def mean_time(time_shift: float) -> float:
    """Mean of a uniform time, shifted."""
    return float(_midpoints(time_shift)[1].mean())


def _midpoints(time_shift: float) -> tuple[Tensor, Tensor]:
    """Of many equal parts of [0, 1], (N,), and the same shifted."""
    import torch

    count = 10_000
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return u, shift_times(u, time_shift)
