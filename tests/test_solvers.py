"""Times, solvers and draws, against closed forms and finer solutions."""

import math

import pytest
import torch

from mfkit.flow.solvers import evaluations, jump, trajectory
from mfkit.flow.times import interval, per_row, shifted, time_grid, time_shift
from mfkit.training.meanflow import instantaneous
from mfkit.training.midtrain import pair


def test_published_shifts() -> None:
    assert time_shift(768, 16, 16) == pytest.approx(6.93, abs=0.005)
    assert time_shift(768, 32, 32) == pytest.approx(13.86, abs=0.005)
    assert time_shift(64, 4, 4) == 1


@pytest.mark.parametrize("shift", [1.0, 6.93])
def test_distribution_of_shifted_uniform_times(shift: float) -> None:
    """P(t' <= x) = x / (s - (s - 1) x), the inverse of the shift."""
    t = shifted(torch.rand(200_000, generator=torch.Generator().manual_seed(0)), shift)
    for x in (0.1, 0.5, 0.9):
        assert (t <= x).float().mean().item() == pytest.approx(x / (shift - (shift - 1) * x), abs=0.005)


def test_grid_descends_from_noise_to_data() -> None:
    grid = time_grid(16, 6.93)
    assert grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()
    assert grid[8].item() == pytest.approx(6.93 * 0.5 / (1 + 5.93 * 0.5))


def test_intervals_are_ordered_and_uniform_before_the_shift() -> None:
    uniform = torch.rand(2, 100_000, generator=torch.Generator().manual_seed(0))
    fixed = torch.arange(100_000) % 4 != 0
    r, t = interval(uniform[0], uniform[1], 1.0, fixed)
    assert (r <= t).all() and (r[fixed] == t[fixed]).all()
    # t is the larger of two uniform draws, in every row: P(t <= x) = x^2.
    assert (t <= 0.5).float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert (r[~fixed] >= 0.5).float().mean().item() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_share_of_instantaneous_rows_is_exact_in_any_batch(share: float) -> None:
    for begin in (0, 64, 12_345_600, 2**30):
        assert instantaneous(torch.arange(begin, begin + 64), share).sum() == 64 * share


def test_pairs_of_states_are_distinct_and_equally_likely() -> None:
    uniform = torch.rand(2, 200_000, generator=torch.Generator().manual_seed(0))
    later, earlier = pair(uniform[0], uniform[1], 5, torch.zeros(200_000, dtype=torch.bool))
    assert (later < earlier).all()
    counts = torch.bincount(later * 5 + earlier)
    assert (counts[counts > 0] / 200_000 - 0.1).abs().max() < 0.005 and (counts > 0).sum() == 10
    later, earlier = pair(uniform[0], uniform[1], 5, torch.ones(200_000, dtype=torch.bool))
    assert (earlier == 4).all() and (torch.bincount(later) / 200_000 - 0.25).abs().max() < 0.005


def decay(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return per_row(torch.cos(3 * t), z) * z


def exact(z: torch.Tensor, t: float, r: float) -> torch.Tensor:
    return z * math.exp((math.sin(3 * r) - math.sin(3 * t)) / 3)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_solvers_converge_to_the_exact_flow_with_their_order(solver: str, order: int) -> None:
    noise = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    errors = []
    for steps in (64, 128):
        times = torch.linspace(1, 0.25, steps + 1, dtype=torch.float64)
        states = trajectory(decay, noise, times, solver)
        assert states.shape == (steps + 1, 3, 2, 4, 4) and torch.equal(states[0], noise)
        errors.append((states[-1] - exact(noise, 1, 0.25)).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_states_of_a_trajectory_belong_to_their_times() -> None:
    """Solved on a shifted grid, each state must be that of a fine solution at the time it is labelled with."""
    noise, times = torch.randn(2, 2, 4, 4, dtype=torch.float64), time_grid(400, 6.93).double()
    states = trajectory(decay, noise, times)
    for index in (50, 200, 350):
        assert torch.allclose(states[index], exact(noise, 1, times[index].item()), rtol=0.01)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_exact_average_velocity_jumps_exactly_over_any_grid(steps: int) -> None:
    noise = torch.randn(3, 2, 4, 4, dtype=torch.float64)

    def u(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (z - exact(z, t[0].item(), r[0].item())) / per_row(t - r, z)

    end = jump(u, noise, time_grid(steps, 2.0).double())
    assert torch.allclose(end, exact(noise, 1, 0), atol=1e-6)


@pytest.mark.parametrize(("solver", "steps", "nfe"), [("euler", 50, 50), ("heun", 25, 49)])
def test_counted_evaluations_are_those_made(solver: str, steps: int, nfe: int) -> None:
    calls = []
    trajectory(lambda z, t: calls.append(1) or z, torch.ones(1, 1, 1, 1), time_grid(steps, 1.0), solver)
    assert len(calls) == nfe == evaluations(steps, solver)
