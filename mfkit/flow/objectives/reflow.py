"""Reflow: flow matching on a teacher's own pairs of noise and image, whose paths are straighter (arXiv 2209.03003)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mfkit.flow.objectives.base import GRADIENT, Batch, DataKind, Loss, Models, Objective, Stage, mean_squared
from mfkit.flow.times import expand_to, interpolate
from mfkit.setting import setting


@dataclass(frozen=True, kw_only=True)
class Reflow(Objective):
    """mean((v(z_t, t, y) - (e - x))^2) for noise e and data x, the two ends of a stored trajectory.

    Annealed as in SlimFlow, e is sqrt(1 - b^2) e + b e' with fresh noise e', and b falls from 1 to 0: from flow
    matching to reflow.
    """

    heading: ClassVar[str] = "Reflow"
    name: ClassVar[str] = "reflow"
    summary: ClassVar[str] = "a teacher's pairs of noise and image (arXiv 2209.03003; SlimFlow, arXiv 2407.12718)"
    stages: ClassVar[tuple[Stage, ...]] = ("train-teacher",)
    reads: ClassVar[DataKind] = "trajectories"

    anneal: float = setting(
        0.5, "Share of the run over which fresh noise gives way to the trajectory's; 0 is plain reflow.", metavar="P",
        min=0, max=1,
    )  # fmt: skip

    def forward_passes(self, stage: Stage) -> float:
        return GRADIENT

    def __call__(self, models: Models, batch: Batch) -> Loss:
        states = batch.data["states"]
        e, x = states[:, 0].float(), states[:, -1].float()
        if self.anneal:
            fresh = 1 - (batch.progress / self.anneal).clamp(max=1)
            noise = batch.draws.normal("noise", batch.latent_shape)
            e = expand_to((1 - fresh.square()).sqrt(), e) * e + expand_to(fresh, e) * noise
        t = batch.shifted_times("time")
        z, v = interpolate(x, e, t)
        return mean_squared(models.network(z, t, batch.y) - v)
