"""The grid of times that costs a solver the least, by Bellman's recursion (BOSS, arXiv 2312.16490)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def step_costs(states: Tensor, times: Tensor, slope: Callable[[int, int], Tensor]) -> Tensor:
    """Mean squared distance between the end of each step and the trajectory: (S + 1, S + 1), infinite for j <= i.

    Entry (i, j) is the mean over trajectories and numbers of (z_i - (t_i - t_j) slope_ij - z_j)^2.

    :param states: (B, S + 1, C, H, W). :param times: (S + 1,), descending.
    :param slope: (i, j) -> (B, C, H, W), what a step from t_i to t_j goes along; asked for in ascending order.
    """
    import torch

    count = len(times)
    costs = torch.full((count, count), float("inf"), dtype=torch.float64)
    for i in range(count - 1):
        for j in range(i + 1, count):
            end = states[:, i] - (times[i] - times[j]) * slope(i, j)
            costs[i, j] = (end - states[:, j]).square().mean()
    return costs


def cheapest_path(costs: Tensor, steps: int) -> list[int]:
    """Indices (steps + 1) of the path from the first time to the last, in so many steps, whose costs sum to the least.

    :param costs: (S + 1, S + 1), of the step from i to j > i. :raises ValueError: there are fewer times than steps.
    """
    import torch

    last = len(costs) - 1
    if not 1 <= steps <= last:
        raise ValueError(f"{steps} steps; the trajectories have {last}")
    best = torch.full((last + 1,), float("inf"), dtype=costs.dtype)
    best[0] = 0
    came_from = []
    for _ in range(steps):
        best, previous = (best[:, None] + costs).min(0)
        came_from.append(previous)
    path = [last]
    for previous in reversed(came_from):
        path.append(int(previous[path[-1]]))
    return path[::-1]
