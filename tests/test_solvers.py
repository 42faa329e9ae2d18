"""Times and solvers, against closed forms and finer solutions."""

import math

import pytest
import torch

from mfkit.errors import UsageError
from mfkit.flow.objectives.cmt import pick_pair
from mfkit.flow.objectives.interval import r_equals_t, rows_with_interval
from mfkit.flow.solvers import SOLVERS, few_step_sample, solve, time_grid
from mfkit.flow.times import default_time_shift, expand_to, shift_times

pytestmark = pytest.mark.fast


def test_published_shifts() -> None:
    assert default_time_shift(768, 16, 16) == pytest.approx(6.93, abs=0.005)
    assert default_time_shift(768, 32, 32) == pytest.approx(13.86, abs=0.005)
    assert default_time_shift(64, 4, 4) == 1


@pytest.mark.parametrize("shift", [1.0, 6.93])
def test_distribution_of_shifted_uniform_times(shift: float) -> None:
    """P(t' <= x) = x / (s - (s - 1) x), the inverse of the shift."""
    t = shift_times(torch.rand(200_000, generator=torch.Generator().manual_seed(0)), shift)
    for x in (0.1, 0.5, 0.9):
        assert (t <= x).float().mean().item() == pytest.approx(x / (shift - (shift - 1) * x), abs=0.005)


def test_grid_descends_from_noise_to_data() -> None:
    grid = time_grid(16, 6.93)
    assert grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()
    assert grid[8].item() == pytest.approx(6.93 * 0.5 / (1 + 5.93 * 0.5))


def test_the_uniform_grid() -> None:
    assert time_grid(4, 6.93, name="uniform").tolist() == [1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_ratio_of_r_equals_t_is_exact_in_any_batch(ratio: float) -> None:
    for begin in (0, 64, 12_345_600, 2**30):
        equal = r_equals_t(torch.arange(begin, begin + 64), ratio)
        assert equal.sum() == 64 * ratio
        assert rows_with_interval(equal, ratio).tolist() == (~equal).nonzero().squeeze(1).tolist()


@pytest.mark.parametrize(
    ("size", "ratio"), [(64, 0.75), (10, 0.75), (16, 0.7), (7, 0.5), (3, 0.75), (4, 0.0), (4, 1.0)]
)
def test_batches_have_one_number_of_rows_with_an_interval(size: int, ratio: float) -> None:
    """So that they have one shape: those with r < t, the last one repeated where a batch has one fewer."""
    counts = set()
    for begin in range(0, 20 * size, size):
        equal = r_equals_t(torch.arange(begin, begin + size), ratio)
        rows = rows_with_interval(equal, ratio)
        assert set(rows.tolist()) == set((~equal).nonzero().flatten().tolist())
        counts.add(len(rows))
    assert counts - {0} in ({math.ceil(size * (1 - ratio))}, set())


def test_pairs_of_states_are_distinct_and_equally_likely() -> None:
    uniform = torch.rand(2, 200_000, generator=torch.Generator().manual_seed(0))
    later, earlier = pick_pair(uniform[0], uniform[1], 5, torch.zeros(200_000, dtype=torch.bool))
    assert (later < earlier).all()
    counts = torch.bincount(later * 5 + earlier)
    assert (counts[counts > 0] / 200_000 - 0.1).abs().max() < 0.005 and (counts > 0).sum() == 10
    later, earlier = pick_pair(uniform[0], uniform[1], 5, torch.ones(200_000, dtype=torch.bool))
    assert (earlier == 4).all() and (torch.bincount(later) / 200_000 - 0.25).abs().max() < 0.005


def decay(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return expand_to(torch.cos(3 * t), z) * z


def exact(z: torch.Tensor, t: float, r: float) -> torch.Tensor:
    return z * math.exp((math.sin(3 * r) - math.sin(3 * t)) / 3)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2), ("ab2", 2)])
def test_solvers_converge_to_the_exact_flow_with_their_order(solver: str, order: int) -> None:
    noise = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    errors = []
    for steps in (64, 128):
        times = torch.linspace(1, 0.25, steps + 1, dtype=torch.float64)
        states = solve(decay, noise, times, solver)
        assert states.shape == (steps + 1, 3, 2, 4, 4) and torch.equal(states[0], noise)
        errors.append((states[-1] - exact(noise, 1, 0.25)).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("solver", ["sde", "sde-constant", "sde-falling"])
def test_stochastic_solvers_keep_the_marginals(solver: str) -> None:
    """Data N(1.7, 0.4^2): the ends have its moments, and depend on the noise of the steps."""
    mean, deviation = 1.7, 0.4
    generator = torch.Generator().manual_seed(0)

    def velocity(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """E[e - x | z] for z = (1 - t) x + t e."""
        t = expand_to(t, z)
        variance = (1 - t) ** 2 * deviation**2 + t**2
        away = z - (1 - t) * mean
        return t / variance * away - (mean + (1 - t) * deviation**2 / variance * away)

    noise = torch.randn(20_000, 1, 1, 1, generator=generator, dtype=torch.float64)

    def fresh(step: int) -> torch.Tensor:
        return torch.randn(noise.shape, generator=generator, dtype=torch.float64)

    times = time_grid(400, 1.0).double()
    end = solve(velocity, noise, times, solver, fresh)[-1]
    assert end.mean().item() == pytest.approx(mean, abs=0.015)
    assert end.std().item() == pytest.approx(deviation, rel=0.03)
    again = solve(velocity, noise, times, solver, fresh)[-1]
    assert torch.corrcoef(torch.stack([end.flatten(), again.flatten()]))[0, 1] < 0.99


def test_the_midpoint_step_is_rf_solvers() -> None:
    """z + h v + h^2/2 v', the derivative v' by the velocity half a step on (arXiv 2411.04746)."""
    z, times = torch.randn(3, 2, 4, 4, dtype=torch.float64), time_grid(5, 2.0).double()
    found = solve(decay, z, times, "midpoint")
    for index, (t, r) in enumerate(zip(times[:-1], times[1:], strict=True)):
        h, v = r - t, decay(z, t.expand(3))
        slope = (decay(z + h / 2 * v, (t + h / 2).expand(3)) - v) / (h / 2)
        z = z + h * v + h**2 / 2 * slope
        assert torch.allclose(found[index + 1], z, rtol=1e-12)


def test_states_of_a_trajectory_belong_to_their_times() -> None:
    """Solved on a shifted grid, each state must be that of a fine solution at the time it is labelled with."""
    noise, times = torch.randn(2, 2, 4, 4, dtype=torch.float64), time_grid(400, 6.93).double()
    states = solve(decay, noise, times)
    for index in (50, 200, 350):
        assert torch.allclose(states[index], exact(noise, 1, times[index].item()), rtol=0.01)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_exact_average_velocity_is_exact_over_any_grid(steps: int) -> None:
    noise = torch.randn(3, 2, 4, 4, dtype=torch.float64)

    def u(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (z - exact(z, t[0].item(), r[0].item())) / expand_to(t - r, z)

    end = few_step_sample(u, noise, time_grid(steps, 2.0).double())
    assert torch.allclose(end, exact(noise, 1, 0), atol=1e-6)


@pytest.mark.parametrize(
    ("solver", "steps", "nfe"), [("euler", 50, 50), ("heun", 25, 49), ("midpoint", 25, 50), ("ab2", 50, 50)]
)
def test_counted_evaluations_are_those_made(solver: str, steps: int, nfe: int) -> None:
    calls = []
    solve(lambda z, t: calls.append(1) or z, torch.ones(1, 1, 1, 1), time_grid(steps, 1.0), solver)
    assert len(calls) == nfe == SOLVERS[solver].evaluations(steps)
    assert SOLVERS[solver].steps(nfe, solver) == steps


def test_evaluations_that_no_number_of_steps_takes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--nfe 50.*49, 51"):
        SOLVERS["heun"].steps(50, "heun")
