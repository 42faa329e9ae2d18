"""The interval split: a leg by the velocity, then the student's own flow map (SoFlow, arXiv 2512.15657)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from mfkit.errors import UsageError
from mfkit.flow.objectives.base import GRADIENT, Loss, Models, Stage
from mfkit.flow.objectives.interval import IntervalObjective, Points
from mfkit.flow.times import expand_to
from mfkit.setting import setting


@dataclass(frozen=True, kw_only=True)
class IntervalSplit(IntervalObjective):
    """u(z, r, t, y) against sg(p v + (1 - p) u(z - p (t - r) v, r, s, y)), s = t - p (t - r).

    The share p of the first leg falls over the run. For p -> 0, (u - target) / p is mean flow's residual
    u - v + (t - r) du/dt; the weight is taken of it, so that the gradient has mean flow's scale for every p:
    the mean of ||e||^2 / p / sg(||e||^2 / p^2 + eps)^norm_p. One forward pass takes the place of du/dt's two.
    """

    heading: ClassVar[str] = "Interval split"
    name: ClassVar[str] = "interval-split"
    summary: ClassVar[str] = "a leg of v, then u's own map (SoFlow, arXiv 2512.15657)"

    first_leg: float = setting(0.1, "Share of the interval that v goes, at the start.", metavar="P", min=1e-4, max=1)
    final_first_leg: float = setting(
        0.002, "The same at the end; exponential in between.", metavar="P", min=1e-4, max=1
    )

    def resolved(self, precision: str) -> Self:
        """:raises UsageError: for bfloat16: u less its target, a few thousandths of it, is below the rounding."""
        if precision == "bf16":
            raise UsageError(f"--objective {self.name} needs --precision float32 or tf32")
        return self

    def forward_passes(self, stage: Stage) -> float:
        return GRADIENT + 1 - self.ratio_r_equals_t + (stage == "distill")

    def loss(self, models: Models, points: Points) -> Loss:
        import torch

        p = points
        share = (self.first_leg * (self.final_first_leg / self.first_leg) ** p.progress).to(p.t.dtype)
        target, scale = p.v.clone(), torch.ones_like(p.t)
        if len(p.longer):
            z, r, t, y, v, leg = (values[p.longer] for values in (p.z, p.r, p.t, p.y, p.v, share))
            gone = leg * (t - r)
            with torch.no_grad():
                rest = models.unwrapped(z - expand_to(gone, z) * v, r, t - gone, y)
            target[p.longer] = expand_to(leg, z) * v + expand_to(1 - leg, z) * rest
            scale[p.longer] = leg
        squared = (models.network(p.z, p.r, p.t, p.y) - target).square().flatten(1)
        total = squared.sum(1)
        weight = (total.detach() / scale.square() + self.norm_eps) ** -self.norm_p / scale
        return Loss((weight * total).mean(), squared.mean().detach())
