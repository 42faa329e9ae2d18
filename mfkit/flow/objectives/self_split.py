"""The interval split by the student's own map: two legs of it make the whole (SplitMeanFlow, arXiv 2507.16884)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mfkit.flow.objectives.base import GRADIENT, Loss, Models, Stage, adaptive_mean_squared
from mfkit.flow.objectives.interval import Points
from mfkit.flow.objectives.target import OwnTargetObjective
from mfkit.flow.objectives.variants import variant
from mfkit.flow.times import expand_to
from mfkit.setting import setting


@dataclass(frozen=True, kw_only=True)
class SelfSplit(OwnTargetObjective):
    """u(z, r, t, y) against sg(p a + (1 - p) u(z - p (t - r) a, r, s, y)), a = u(z, s, t, y), s = t - p (t - r).

    The exact average velocity fulfils it for every p, but so does that of any other flow: what ties u to v are the rows
    with r = t alone, so keep their share at a half or more.
    """

    heading: ClassVar[str] = "Self split"
    name: ClassVar[str] = "self-split"
    summary: ClassVar[str] = "two legs of u's own map, at any time between (SplitMeanFlow, arXiv 2507.16884)"
    experimental: ClassVar[bool] = True

    norm_p: float = setting(0.0, "p of the weight 1 / (||error||^2 + eps)^p of a sample.", metavar="P", min=0)
    middle: Literal["uniform", "half"] = setting("uniform", "Where the two legs meet in the interval.")

    def forward_passes(self, stage: Stage) -> float:
        longer = 1 - self.ratio_r_equals_t
        return GRADIENT + 2 * longer + self.asks_teacher(stage) * (1 - longer)

    def loss(self, models: Models, points: Points) -> Loss:
        import torch

        p, inner = points, points.take(points.longer)
        z, r, t, y = inner.z, inner.r, inner.t, inner.y
        share = inner.third.to(t.dtype) if self.middle == "uniform" else torch.full_like(t, 0.5)
        gone = share * (t - r)
        whole, (first,) = self.evaluate(models, p, t - gone)
        with torch.no_grad():
            second = self.target_network(models)(z - expand_to(gone, z) * first, r, t - gone, y)
        goal = expand_to(share, z) * first + expand_to(1 - share, z) * second
        error = whole - p.v.index_copy(0, p.longer, goal.to(p.v.dtype))
        return adaptive_mean_squared(error, self.norm_p, self.norm_eps, weight=self.weight(p))


PSD = variant(
    SelfSplit, "psd", "two halves of u's own map (progressive self-distillation, PSD-midpoint, arXiv 2505.18825)",
    middle="half",
)  # fmt: skip
Shortcut = variant(
    SelfSplit, "shortcut", "two halves of u's own map, by averaged weights (shortcut models, arXiv 2410.12557)",
    middle="half", target_ema=0.95,
)  # fmt: skip
