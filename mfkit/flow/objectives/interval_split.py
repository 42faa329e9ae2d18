"""The interval split: a leg by the velocity, then the student's own flow map (SoFlow, arXiv 2512.15657)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from mfkit.errors import UsageError
from mfkit.flow.objectives.base import GRADIENT, Loss, Models, Stage, adaptive_mean_squared
from mfkit.flow.objectives.interval import IntervalObjective, Points
from mfkit.flow.objectives.variants import variant
from mfkit.flow.times import expand_to
from mfkit.setting import setting

if TYPE_CHECKING:
    from torch import Tensor

_STEEPNESS = 25
"""Of AlphaFlow's sigmoid, over the part of the run in which the leg shrinks."""


@dataclass(frozen=True, kw_only=True)
class IntervalSplit(IntervalObjective):
    """u(z, r, t, y) against sg(p v + (1 - p) u(z - p (t - r) v, r, s, y)), s = t - p (t - r).

    The share p of the first leg falls over the run. For p -> 0, (u - target) / p is mean flow's residual
    u - v + (t - r) du/dt; the weight is taken of it, so that the gradient has mean flow's scale for every p:
    the mean of ||e||^2 / p / sg(||e||^2 / p^2 + eps)^norm_p. One forward pass takes the place of du/dt's two.
    """

    heading: ClassVar[str] = "Interval split"
    name: ClassVar[str] = "interval-split"
    summary: ClassVar[str] = "a leg of v, then u's own map"

    first_leg: float = setting(0.1, "First leg, by the velocity, at the start.", metavar="P", min=1e-4, max=1)
    final_first_leg: float = setting(0.002, "The same at the end.", metavar="P", min=1e-4, max=1)
    first_leg_unit: Literal["share", "time"] = setting(
        "share", "Whether it is a share of the interval or a length in t, at most the interval."
    )
    first_leg_schedule: Literal["exponential", "sigmoid"] = setting(
        "exponential", "How it shrinks; sigmoid is AlphaFlow's."
    )
    first_leg_shrinks: tuple[float, float] = setting(
        (0.0, 1.0), "Part of the run in which it shrinks, from A to B.", metavar="A B", min=0, max=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        begin, end = self.first_leg_shrinks
        if not begin < end:
            raise ValueError(f"first_leg_shrinks is {begin:g} {end:g}; give A < B")

    def resolved(self, precision: str) -> Self:
        """:raises UsageError: for bfloat16: u less its target, a few thousandths of it, is below the rounding."""
        if precision == "bf16":
            raise UsageError(f"--objective {self.name} needs --precision float32 or tf32")
        return self

    def forward_passes(self, stage: Stage) -> float:
        return GRADIENT + 1 - self.ratio_r_equals_t + self.asks_teacher(stage)

    def share(self, progress: Tensor, length: Tensor) -> Tensor:
        """The share p of the first leg, (B,), in (0, 1].

        :param length: t - r, (B,).
        """
        begin, end = self.first_leg_shrinks
        done = ((progress - begin) / (end - begin)).clamp(0, 1)
        if self.first_leg_schedule == "sigmoid":
            leg = self.first_leg + (self.final_first_leg - self.first_leg) * (_STEEPNESS * (done - 0.5)).sigmoid()
        else:
            leg = self.first_leg * (self.final_first_leg / self.first_leg) ** done
        leg = leg.to(length.dtype)
        return leg if self.first_leg_unit == "share" else (leg / length.clamp(min=1e-6)).clamp(max=1)

    def loss(self, models: Models, points: Points) -> Loss:
        import torch

        p, inner = points, points.take(points.longer)
        share = self.share(p.progress, p.t - p.r)[p.longer]
        gone = share * (inner.t - inner.r)
        with torch.no_grad():
            rest = models.unwrapped(inner.z - expand_to(gone, inner.z) * inner.v, inner.r, inner.t - gone, inner.y)
        goal = expand_to(share, rest) * inner.v + expand_to(1 - share, rest) * rest
        error = models.network(p.z, p.r, p.t, p.y) - p.v.index_copy(0, p.longer, goal.to(p.v.dtype))
        shares = torch.ones_like(p.t).index_copy(0, p.longer, share)
        return adaptive_mean_squared(error, self.norm_p, self.norm_eps, weight=self.weight(p), share=shares)


SoFlow = variant(
    IntervalSplit, "soflow", "first leg 0.1 to 0.002 of the interval, exponentially (SoFlow, arXiv 2512.15657)"
)  # fmt: skip
AlphaFlow = variant(
    IntervalSplit, "alphaflow", "first leg from all to 0.005 of it, by a sigmoid (AlphaFlow, arXiv 2510.20771)",
    ratio_r_equals_t=0.5, first_leg=1.0, final_first_leg=0.005, first_leg_schedule="sigmoid",
)  # fmt: skip
EMF = variant(
    IntervalSplit, "emf", "first leg of 0.05 in t throughout (EMF, arXiv 2602.02571)",
    first_leg=0.05, final_first_leg=0.05, first_leg_unit="time",
)  # fmt: skip
Consistency = variant(
    IntervalSplit, "consistency",
    "r = 0, first leg 0.25 to 0.005 of t: consistency distillation, or training (arXiv 2303.01469)",
    ratio_to_data=1.0, first_leg=0.25, final_first_leg=0.005,
)  # fmt: skip
# Without its steps and its factor 1 + 8 sigmoid(-t), which makes the leg longer near the data.
ECT = variant(
    IntervalSplit, "ect", "r = 0, first leg from all to 1/256 of t (easy consistency tuning, arXiv 2406.14548)",
    stages=("bootstrap", "train-mean-flow"), ratio_r_equals_t=0.0, ratio_to_data=1.0, norm_p=0.5,
    first_leg=1.0, final_first_leg=1 / 256,
)  # fmt: skip
