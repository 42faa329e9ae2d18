"""Consistency mid-training: the student learns the chords of the teacher's trajectories (CMT, arXiv 2509.24526)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mfkit.flow.objectives.base import GRADIENT, Batch, DataKind, Loss, Models, Objective, Stage, mean_squared
from mfkit.flow.times import expand_to
from mfkit.setting import setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CMT(Objective):
    """mean((u(z_t, r, t, y) - (z_t - z_r) / (t - r))^2) for two states of one teacher trajectory, r < t."""

    heading: ClassVar[str] = "Consistency mid-training"
    name: ClassVar[str] = "cmt"
    summary: ClassVar[str] = "chords of the teacher's trajectories (CMT, arXiv 2509.24526)"
    stages: ClassVar[tuple[Stage, ...]] = ("midtrain",)
    reads: ClassVar[DataKind] = "trajectories"

    pairs: int = setting(1, "Pairs of states taken from a trajectory each time it is read.", metavar="N", min=1)
    ratio_to_data: float = setting(
        0.0, "Share of pairs that end at the data; the others are any two states.", metavar="P", min=0, max=1
    )

    @property
    def rows_per_sample(self) -> int:
        return self.pairs

    def forward_passes(self, stage: Stage) -> float:
        return GRADIENT

    def __call__(self, models: Models, batch: Batch) -> Loss:
        import torch

        states, times = batch.data["states"], batch.data["times"]
        first, second, to_data = (
            batch.draws.uniform(name, self.pairs).flatten() for name in ("first-state", "second-state", "to-data")
        )
        sample = torch.arange(len(states), device=states.device).repeat_interleave(self.pairs)  # (B * pairs,)
        later, earlier = pick_pair(first, second, states.shape[1], to_data < self.ratio_to_data)
        z, t, r, y = states[sample, later].float(), times[sample, later], times[sample, earlier], batch.y[sample]
        arrived = self.arrived(models, batch, sample, later, earlier)
        return mean_squared(models.network(z, r, t, y) - (z - arrived) / expand_to(t - r, z))

    def arrived(self, models: Models, batch: Batch, sample: Tensor, later: Tensor, earlier: Tensor) -> Tensor:
        """Where the chords end, (B * pairs, C, H, W), by indices of samples and of their states, (B * pairs,) each."""
        return batch.data["states"][sample, earlier].float()


def pick_pair(uniform_a: Tensor, uniform_b: Tensor, states: int, to_data: Tensor) -> tuple[Tensor, Tensor]:
    """Two different states of a trajectory, every pair equally likely, from uniform draws (B,) in [0, 1).

    States stand in descending time, so the pair is (smaller index, larger index) = (later time, earlier time).
    Where ``to_data`` (B,) is true, the earlier state is the last one, the data.
    """
    first = (uniform_a * states).long()
    second = (uniform_b * (states - 1)).long()
    other = second + (second >= first)
    later = second.where(to_data, first.minimum(other))
    return later, first.maximum(other).masked_fill(to_data, states - 1)
