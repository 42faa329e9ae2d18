"""Mean flow: the student learns the average velocity from the velocity and its own derivative (arXiv 2505.13447).

Distillation (MFD) takes the teacher's velocity, bootstrapping (MFT) the conditional one, e - x; nothing else differs
(arXiv 2511.13019). Its siblings differ in the tangent, along which the derivative is taken, and in how much of it is
subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from mfkit.flow.derivative import DerivativeMethod, central_difference, jvp, neighbours
from mfkit.flow.objectives.base import GRADIENT, Loss, Models, Stage, adaptive_mean_squared
from mfkit.flow.objectives.interval import IntervalObjective, Points, evaluate
from mfkit.flow.objectives.variants import variant
from mfkit.flow.times import expand_to
from mfkit.setting import setting

if TYPE_CHECKING:
    from torch import Tensor

Tangent = Literal["velocity", "teacher", "own"]


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
    tangent: Tangent = setting(
        "velocity",
        "dz/dt of that derivative: the target's velocity, the teacher's, or the student's own u(z, t, t) (iMF, arXiv "
        "2512.02012).",
    )
    tangent_warmup: float = setting(
        0.0, "Share of the run over which (t - r) du/dt grows from nothing (sCM, arXiv 2410.11081).", metavar="P",
        min=0, max=1,
    )  # fmt: skip
    max_correction: float = setting(
        0.0, "Bound of each number of u less its target, where r < t (FACM, arXiv 2507.03738); 0 is none.", metavar="C",
        min=0,
    )  # fmt: skip
    normalise: float = setting(
        0.0, "Weight of a sample, 1 / (root mean square of u less its target + C) (sCM, arXiv 2410.11081); 0 is none.",
        metavar="C", min=0,
    )  # fmt: skip
    slope_gradient: float = setting(
        0.0, "Share of du/dt that carries a gradient at the end (Modular MeanFlow, arXiv 2508.17426).", metavar="P",
        min=0, max=1,
    )  # fmt: skip
    slope_gradient_warmup: float = setting(
        0.5, "Share of the run over which that share grows from nothing.", metavar="P", min=0, max=1
    )

    def resolved(self, precision: str) -> Self:
        automatic: DerivativeMethod = "central" if precision == "float32" else "jvp"
        chosen = replace(self, derivative=automatic) if self.derivative == "auto" else self
        if self.slope_gradient and chosen.derivative == "jvp":
            raise ValueError("--slope-gradient differentiates a central difference, in float32; jvp has no gradient")
        return chosen

    def check_stage(self, stage: Stage) -> None:
        super().check_stage(stage)
        if self.tangent == "teacher" and stage != "distill":
            raise ValueError(f"--tangent teacher: {stage} has no teacher")

    def forward_passes(self, stage: Stage) -> float:
        longer = 1 - self.ratio_r_equals_t
        slope = 2 * GRADIENT if self.slope_gradient else 2
        another = {"velocity": 0, "teacher": not self.asks_teacher(stage), "own": 1}[self.tangent]
        return GRADIENT + (slope + another) * longer + self.asks_teacher(stage)

    def loss(self, models: Models, points: Points) -> Loss:
        import torch

        p = points
        # A row that stands twice in ``longer`` would get twice the gradient of a slope that has one.
        longer = p.longer.unique() if self.slope_gradient else p.longer
        inner = p.take(longer)
        z, r, t, y = inner.z, inner.r, inner.t, inner.y
        u, tangent = self._tangent(models, p, inner)
        if self.slope_gradient:
            u, slope = self._slope_with_gradient(models, p, inner, tangent)
        else:
            estimate = jvp if self.derivative == "jvp" else central_difference(self.finite_difference_step)
            slope = estimate(models.unwrapped, z, r, t, y, tangent) if len(z) else z
            u = models.network(p.z, p.r, p.t, p.y) if u is None else u
        scale = t - r
        if self.tangent_warmup:
            scale = scale * (inner.progress / self.tangent_warmup).clamp(max=1)
        error = u - p.v.index_copy(0, longer, inner.v - expand_to(scale, z) * slope)
        if self.max_correction:
            bounded = error.detach().clamp(-self.max_correction, self.max_correction) + error - error.detach()
            error = torch.where(expand_to(p.r < p.t, error).bool(), bounded, error)
        weight = self.weight(p)
        if self.normalise:
            normalised = 1 / (error.detach().square().flatten(1).mean(1).sqrt() + self.normalise)
            weight = normalised if weight is None else weight * normalised
        return adaptive_mean_squared(error, self.norm_p, self.norm_eps, weight=weight)

    def _tangent(self, models: Models, points: Points, inner: Points) -> tuple[Tensor | None, Tensor]:
        """dz/dt at the inner points; and u at all of them, where it comes with it."""
        import torch

        z, t, y = inner.z, inner.t, inner.y
        if self.tangent == "own" and self.slope_gradient:
            with torch.no_grad():
                return None, models.unwrapped(z, t, t, y).to(z.dtype)
        if self.tangent == "own":
            u, (own,) = evaluate(models, points, t)
            return u, own.to(z.dtype)
        if self.tangent == "teacher" and self.velocity == "data":
            assert models.velocity is not None
            return None, models.velocity(z, t, y).to(z.dtype)
        return None, inner.v

    def _slope_with_gradient(
        self, models: Models, points: Points, inner: Points, tangent: Tensor
    ) -> tuple[Tensor, Tensor]:
        """u at all points and du/dt at the inner ones, of which a share carries a gradient, in one forward pass."""
        import torch

        p, i = points, inner
        (ahead, later), (behind, earlier), width = neighbours(self.finite_difference_step, i.z, i.r, i.t, tangent)
        values = models.network(
            torch.cat([p.z, ahead, behind]), torch.cat([p.r, i.r, i.r]), torch.cat([p.t, later, earlier]),
            torch.cat([p.y, i.y, i.y]),
        )  # fmt: skip
        u, u_ahead, u_behind = values.split([len(p.z), len(i.z), len(i.z)])
        slope = (u_ahead - u_behind) / expand_to(width, u)
        grown = (i.progress / self.slope_gradient_warmup).clamp(max=1) if self.slope_gradient_warmup else 1
        share = expand_to(self.slope_gradient * grown * torch.ones_like(i.t), u)
        return u, slope.detach() + share * (slope - slope.detach())


IMF = variant(
    MeanFlow, "imf", "mean flow along u(z, t, t) (improved MeanFlow, arXiv 2512.02012)", ratio_r_equals_t=0.5,
    tangent="own", norm_eps=0.01,
)  # fmt: skip
Hybrid = variant(
    MeanFlow, "hybrid", "mean flow of e - x along the teacher's velocity (ours)", stages=("distill",),
    experimental=True, velocity="data", tangent="teacher",
)  # fmt: skip
SCM = variant(
    MeanFlow, "scm", "mean flow at r = 0, normalised (sCM, arXiv 2410.11081)", ratio_r_equals_t=0.0, ratio_to_data=1.0,
    norm_p=0.0, tangent_warmup=0.1, normalise=0.1,
)  # fmt: skip
# Its rows with r = t have the same power and no cosine; the offset of the power is of the sum over elements.
FACM = variant(
    MeanFlow, "facm", "mean flow at r = 0, bounded, anchored by rows with r = t (FACM, arXiv 2507.03738)",
    ratio_r_equals_t=0.5, ratio_to_data=1.0, norm_p=0.5, max_correction=1.0, interval_weight="facm",
)  # fmt: skip
AYF = variant(
    MeanFlow, "ayf", "mean flow, normalised (Align Your Flow, arXiv 2506.14603; --guide guides its teacher)",
    stages=("distill",), ratio_r_equals_t=0.0, norm_p=0.0, tangent_warmup=0.1, normalise=0.1,
)  # fmt: skip
TiM = variant(
    MeanFlow, "tim", "mean flow, some of it to r = 0, weighed by tan t - tan r (TiM, arXiv 2509.04394)",
    ratio_r_equals_t=0.5, ratio_to_data=0.2, interval_weight="tim",
)  # fmt: skip
TEMF = variant(
    MeanFlow, "temf", "mean flow, short intervals weighed more (TEMF, CVPR 2026)", interval_weight="temf"
)  # fmt: skip
Modular = variant(
    MeanFlow, "modular", "mean flow with a gradient through du/dt (Modular MeanFlow, arXiv 2508.17426)",
    experimental=True, slope_gradient=1.0,
)  # fmt: skip
