"""Named random streams: what a draw depends on, and what it does not; its distribution; no stream moves another."""

import pytest
import torch
from scipy import stats

from mfkit.flow.random import Draws, stream_keys

pytestmark = pytest.mark.fast

SAMPLES = range(20_000)


def test_draws_depend_on_seed_stage_name_and_sample_alone() -> None:
    many, alone = Draws(7, "distill", range(10)), Draws(7, "distill", [6])
    assert torch.equal(many.uniform("time", 2)[6], alone.uniform("time", 2)[0])
    assert torch.equal(many.normal("noise", (3, 4))[6], alone.normal("noise", (3, 4))[0])
    for other in (Draws(8, "distill", range(10)), Draws(7, "midtrain", range(10))):
        assert not torch.isin(many.uniform("time", 2), other.uniform("time", 2)).any()
        assert not torch.isin(many.normal("noise", (3, 4)), other.normal("noise", (3, 4))).any()
    assert not torch.isin(many.uniform("time", 2), many.uniform("share", 2)).any()


def test_a_new_stream_moves_no_draw_of_another() -> None:
    """Nor does the order in which they are drawn."""
    draws, other = Draws(0, "distill", range(5)), Draws(0, "distill", range(5))
    noise, time = draws.normal("noise", (2, 3)), draws.uniform("time")
    other.uniform("one more", 4)
    assert torch.equal(other.uniform("time"), time) and torch.equal(other.normal("noise", (2, 3)), noise)


def test_more_columns_leave_the_first_ones_as_they_are() -> None:
    draws = Draws(0, "distill", range(5))
    assert torch.equal(draws.uniform("time", 3)[:, :2], draws.uniform("time", 2))
    assert torch.equal(draws.uniform("time", 1)[:, 0], draws.uniform("time"))


def test_uniform_draws_are_uniform_and_independent() -> None:
    draws = Draws(3, "train-teacher", SAMPLES)
    columns = torch.cat([draws.uniform("time", 3), draws.uniform("class-dropout", 1)], 1)
    assert columns.dtype == torch.float32 and columns.min() >= 0 and columns.max() < 1
    for column in columns.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-3
    pairs = torch.cat([columns[1:], columns[:-1]], 1)  # beside those of the sample before
    assert (torch.corrcoef(pairs.T) - torch.eye(8)).abs().max() < 0.03


def test_normal_draws_are_normal_and_independent() -> None:
    noise = Draws(3, "sample", SAMPLES).normal("noise", (16,))
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.corrcoef(torch.stack([noise[1:, 0], noise[:-1, 0]]))[0, 1].abs() < 0.03


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_keys_do_not_repeat(seed: int) -> None:
    keys = {int(key) for name in ("a", "b") for key in stream_keys(seed, name, range(50_000))}
    assert len(keys) == 100_000
