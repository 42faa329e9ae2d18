"""Mean flow: the student learns the average velocity from the velocity and its own derivative (arXiv 2505.13447).

Distillation (MFD) takes the teacher's velocity, bootstrapping (MFT) the conditional one, e - x; nothing else differs
(arXiv 2511.13019).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from mfkit.flow.derivative import DerivativeMethod, central_difference, jvp
from mfkit.flow.objectives.base import GRADIENT, Loss, Models, Stage, adaptive_mean_squared
from mfkit.flow.objectives.interval import IntervalObjective, Points
from mfkit.flow.times import expand_to
from mfkit.setting import setting


@dataclass(frozen=True, kw_only=True)
class MeanFlow(IntervalObjective):
    """u(z, r, t, y) against sg(v - (t - r) du/dt); du/dt is taken on the rows with r < t alone."""

    heading: ClassVar[str] = "Mean flow"
    name: ClassVar[str] = "mean-flow"
    summary: ClassVar[str] = "v - (t - r) du/dt (MeanFlow, arXiv 2505.13447)"

    derivative: DerivativeMethod = setting(
        "auto", "How du/dt is taken; auto: central in float32, else jvp, since a difference would be noise."
    )
    finite_difference_step: float = setting(
        5e-3, "Half-width of the central difference, in t.", metavar="DT", min=1e-6, max=0.5
    )

    def resolved(self, precision: str) -> Self:
        automatic: DerivativeMethod = "central" if precision == "float32" else "jvp"
        return replace(self, derivative=automatic) if self.derivative == "auto" else self

    def forward_passes(self, stage: Stage) -> float:
        return GRADIENT + 2 * (1 - self.ratio_r_equals_t) + (stage == "distill")

    def loss(self, models: Models, points: Points) -> Loss:
        p = points
        target = p.v.clone()
        if len(p.longer):
            z, r, t, y, v = (values[p.longer] for values in (p.z, p.r, p.t, p.y, p.v))
            slope = jvp if self.derivative == "jvp" else central_difference(self.finite_difference_step)
            target[p.longer] -= expand_to(t - r, z) * slope(models.unwrapped, z, r, t, y, v)
        return adaptive_mean_squared(models.network(p.z, p.r, p.t, p.y) - target, self.norm_p, self.norm_eps)
