"""Arrival: the map must arrive with the velocity of the place where it arrives (the Lagrangian equation).

By the teacher it is Lagrangian map distillation (arXiv 2406.07507), without latents FreeFlow's prediction half (arXiv
2511.19428); by the student's own velocity, Lagrangian self-distillation (arXiv 2505.18825) and terminal velocity
matching (arXiv 2511.19797).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from mfkit.errors import UsageError
from mfkit.flow.interval_weights import mean_time
from mfkit.flow.objectives.base import GRADIENT, Batch, Loss, Models, Stage, adaptive_mean_squared
from mfkit.flow.objectives.interval import Points
from mfkit.flow.objectives.target import OwnTargetObjective
from mfkit.flow.objectives.variants import variant
from mfkit.flow.times import expand_to
from mfkit.setting import setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Arrival(OwnTargetObjective):
    """dX/dr = v(X, r) for X = z - (t - r) u(z, r, t, y): u - (t - r) du/dr against v at X. On rows with r = t, v at z.

    v at X is the teacher's, or the student's own, sg u(X, r, r, y). du/dr is a central difference at fixed z and t.
    With ``--through prediction`` it belongs to the target, sg(v + (t - r) du/dr); with ``slope`` the gradient goes
    through it, (X(r + h) - X(r - h)) / 2 h against v(X, r).
    """

    heading: ClassVar[str] = "Arrival"
    name: ClassVar[str] = "arrival"
    summary: ClassVar[str] = "the velocity where the map arrives (FreeFlow's prediction half, arXiv 2511.19428)"

    arrival_step: float = setting(0.02, "h, the half-width of that difference, in r.", metavar="DR", min=1e-4, max=0.5)
    through: Literal["prediction", "slope"] = setting("prediction", "Where the gradient goes through.")
    free: bool = setting(False, "From noise alone, t = 1 in every row: no latents are read.")

    def check_stage(self, stage: Stage) -> None:
        super().check_stage(stage)
        if self.free and not self.asks_teacher(stage):
            raise ValueError("--free learns from a teacher alone: it is for distill, without --velocity data")
        if self.target_ema and self.through == "slope" and self.asks_teacher(stage):
            raise ValueError("--target-ema: all of the target is the teacher's; add --velocity data, or take bootstrap")

    def resolved(self, precision: str) -> Self:
        """:raises UsageError: for bfloat16, below whose rounding the difference is."""
        if precision == "bf16":
            raise UsageError(f"--objective {self.name} needs --precision float32 or tf32")
        return self

    @property
    def needs_latents(self) -> bool:
        return not self.free

    def forward_passes(self, stage: Stage) -> float:
        longer = 1.0 if self.free else 1 - self.ratio_r_equals_t
        a_longer_one = GRADIENT + 2 + 1 if self.through == "prediction" else 2 * GRADIENT + 1
        return a_longer_one * longer + (GRADIENT + self.asks_teacher(stage)) * (1 - longer)

    def points(self, models: Models, batch: Batch) -> Points:
        if not self.free:
            return super().points(models, batch)
        import torch

        z, r = batch.draws.normal("noise", batch.latent_shape), batch.shifted_times("time")
        every = torch.arange(len(r), device=r.device)
        third = batch.draws.uniform("third-time")
        length = 1 - mean_time(batch.time_shift)
        return Points(z, r, torch.ones_like(r), batch.y, torch.zeros_like(z), every, batch.progress, third, length)

    def loss(self, models: Models, points: Points) -> Loss:
        error, order = (self._by_prediction if self.through == "prediction" else self._by_slope)(models, points)
        weight = self.weight(points)
        return adaptive_mean_squared(
            error, self.norm_p, self.norm_eps, weight=None if weight is None else weight[order]
        )

    def _velocity_at(self, models: Models, z: Tensor, r: Tensor, y: Tensor) -> Tensor:
        import torch

        if models.velocity is not None and self.velocity != "data":
            return models.velocity(z, r, y).to(z.dtype)
        with torch.no_grad():
            return self.target_network(models)(z, r, r, y).to(z.dtype)

    def _by_prediction(self, models: Models, points: Points) -> tuple[Tensor, slice | Tensor]:
        """Errors of all rows, and the rows that they are of."""
        p, inner = points, points.take(points.longer)
        z, r, t, y = inner.z, inner.r, inner.t, inner.y
        later, earlier, width = self._neighbours(r, t)
        u, (ahead, behind) = self.evaluate(models, p, later, earlier)
        slope = (ahead - behind) / expand_to(width, z)
        there = self._velocity_at(models, z - expand_to(t - r, z) * u.detach()[p.longer], r, y)
        goal = there + expand_to(t - r, z) * slope
        return u - p.v.index_copy(0, p.longer, goal.to(p.v.dtype)), slice(None)

    def _by_slope(self, models: Models, points: Points) -> tuple[Tensor, slice | Tensor]:
        """The same."""
        import torch

        p, longer = points, points.longer.unique()  # so that no row counts twice
        equal = torch.ones_like(p.t, dtype=torch.bool).index_fill(0, longer, False).nonzero().squeeze(1)
        inner, outer = p.take(longer), p.take(equal)
        z, t, y = inner.z, inner.t, inner.y
        later, earlier, width = self._neighbours(inner.r, t)
        values = models.network(
            torch.cat([outer.z, z, z]), torch.cat([outer.r, later, earlier]), torch.cat([outer.t, t, t]),
            torch.cat([outer.y, y, y]),
        )  # fmt: skip
        u, *ends = values.split([len(equal), len(longer), len(longer)])
        above, below = (z - expand_to(t - at, z) * end for at, end in zip((later, earlier), ends, strict=True))
        there = self._velocity_at(models, (above + below).detach() / 2, (later + earlier) / 2, y)
        error = torch.cat([u - outer.v, (above - below) / expand_to(width, z) - there])
        return error, torch.cat([equal, longer])

    def _neighbours(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r a step later and earlier, in [0, t], and their distance."""
        import torch

        later, earlier = torch.minimum(r + self.arrival_step, t), (r - self.arrival_step).clamp(min=0)
        return later, earlier, (later - earlier).clamp(min=torch.finfo(t.dtype).tiny)


FreeFlow = variant(
    Arrival, "freeflow", "the same without latents: noise and a teacher alone (arXiv 2511.19428)", stages=("distill",),
    free=True,
)  # fmt: skip
LMD = variant(
    Arrival, "lmd", "the same with the gradient through du/dr (Lagrangian map distillation, arXiv 2406.07507)",
    stages=("distill",), through="slope", norm_p=0.0,
)  # fmt: skip
LSD = variant(
    Arrival, "lsd", "u's own velocity there, through du/dr (Lagrangian self-distillation, arXiv 2505.18825)",
    stages=("bootstrap", "train-mean-flow"), through="slope", norm_p=0.0,
)  # fmt: skip
TVM = variant(
    Arrival, "tvm", "LSD by averaged weights (terminal velocity matching, arXiv 2511.19797)",
    stages=("bootstrap", "train-mean-flow"), through="slope", norm_p=0.0, target_ema=0.99,
)  # fmt: skip
