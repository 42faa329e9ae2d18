"""Flow matching: the teacher learns the velocity of the straight path (arXiv 2210.02747)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mfkit.flow.objectives.base import GRADIENT, Batch, Loss, Models, Objective, Stage, mean_squared
from mfkit.flow.times import interpolate


@dataclass(frozen=True, kw_only=True)
class FlowMatching(Objective):
    """mean((v(z_t, t, y) - (e - x))^2), z_t = (1 - t) x + t e, t uniform and shifted."""

    heading: ClassVar[str] = "Flow matching"
    name: ClassVar[str] = "flow-matching"
    summary: ClassVar[str] = "the velocity e - x (arXiv 2210.02747)"
    stages: ClassVar[tuple[Stage, ...]] = ("train-teacher",)

    def forward_passes(self, stage: Stage) -> float:
        return GRADIENT

    def __call__(self, models: Models, batch: Batch) -> Loss:
        x = batch.data["latent"]
        t = batch.shifted_times("time")
        z, v = interpolate(x, batch.draws.normal("noise", x.shape[1:]), t)
        return mean_squared(models.network(z, t, batch.y) - v)
