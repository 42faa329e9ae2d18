"""What objectives on an interval r <= t of the straight path share: the law of the times, the weight of a sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, ClassVar, Literal

from mfkit.flow.interval_weights import INTERVAL_WEIGHTS, Interval, mean_length
from mfkit.flow.objectives.base import Batch, Loss, Models, Objective, Stage
from mfkit.flow.times import interpolate
from mfkit.setting import setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Points:
    """Points of the path, (B, ...) each."""

    z: Tensor
    """(B, C, H, W), at t."""
    r: Tensor
    t: Tensor
    y: Tensor
    v: Tensor
    """(B, C, H, W), the velocity at z, without a gradient."""
    longer: Tensor
    """(M,), indices of the rows with r < t. An index may stand there twice."""
    progress: Tensor
    """How far the run is, in [0, 1)."""
    third: Tensor
    """Uniform in [0, 1), for a third time."""
    mean_length: float = 1 / 3
    """Mean of t - r over the rows with r < t, by the law that they are drawn by; that of two uniform times."""

    def take(self, rows: Tensor) -> Points:
        """These rows, all of them inner ones."""
        names = ("z", "r", "t", "y", "v", "progress", "third")
        return replace(self, longer=rows, **{name: getattr(self, name)[rows] for name in names})


def evaluate(models: Models, points: Points, *others: Tensor) -> tuple[Tensor, list[Tensor]]:
    """u (B, C, H, W) with its gradient, and what it is at other r, (M,) each, without: (M, C, H, W) on ``longer``."""
    import torch

    p = points
    if others and getattr(models.unwrapped, "late_r", False):
        u, found = models.network(p.z, p.r, p.t, p.y, p.longer, torch.stack(others))
        return u, list(found)
    z, t, y = p.z[p.longer], p.t[p.longer], p.y[p.longer]
    with torch.no_grad():
        found = [models.unwrapped(z, r, t, y) for r in others]
    return models.network(p.z, p.r, p.t, p.y), found


VelocitySource = Literal["auto", "teacher", "data"]
"""``auto`` is the teacher where there is one."""


@dataclass(frozen=True, kw_only=True)
class IntervalObjective(Objective):
    """A loss at points of the path, by the teacher's velocity or the conditional one, e - x."""

    heading: ClassVar[str] = "Losses on an interval"
    stages: ClassVar[tuple[Stage, ...]] = ("distill", "bootstrap", "train-mean-flow")
    own_target: ClassVar[bool] = False
    """Whether v is asked for on the rows with r = t alone."""

    velocity: VelocitySource = setting(
        "auto", "Whose velocity the target has: the teacher's or the data's, e - x; auto: the teacher's, if any."
    )
    ratio_r_equals_t: float = setting(
        0.75, "Share of samples with r = t.", metavar="P", min=0, max=1, unless=("free", True)
    )
    ratio_to_data: float = setting(
        0.0, "Share of the others that reach to the data, r = 0.", metavar="P", min=0, max=1, unless=("free", True)
    )
    interval_weight: str = setting(
        "none",
        "Weight of a sample by r and t: short-first (Kim et al., arXiv 2511.19065), temf (CVPR 2026), tim (arXiv "
        "2509.04394), facm (arXiv 2507.03738).",
        choices=INTERVAL_WEIGHTS,
    )
    norm_p: float = setting(1.0, "p of the weight 1 / (||error||^2 + eps)^p of a sample.", metavar="P", min=0)
    norm_eps: float = setting(1e-3, "eps of that weight.", metavar="EPS", min=0)

    def check_stage(self, stage: Stage) -> None:
        if self.velocity == "teacher" and stage != "distill":
            raise ValueError(f"--velocity teacher: {stage} has no teacher")

    def asks_teacher(self, stage: Stage) -> bool:
        """Whether the target has the teacher's velocity."""
        return stage == "distill" and self.velocity != "data"

    def __call__(self, models: Models, batch: Batch) -> Loss:
        return self.loss(models, self.points(models, batch))

    def loss(self, models: Models, points: Points) -> Loss:
        """The loss at given points, without random draws."""
        raise NotImplementedError

    def points(self, models: Models, batch: Batch) -> Points:
        """Two uniform times, shifted and sorted, of which r = t in an exact share of samples."""
        import torch

        x = batch.data["latent"]
        equal = r_equals_t(torch.tensor(batch.positions), self.ratio_r_equals_t)
        longer = rows_with_interval(equal, self.ratio_r_equals_t).to(x.device, non_blocking=True)
        times = batch.shifted_times("time", 2)
        t = times.amax(1)
        r = times.amin(1)
        if self.ratio_to_data:
            r = r.masked_fill(batch.draws.uniform("to-data") < self.ratio_to_data, 0)
        r = t.where(equal.to(x.device, non_blocking=True), r)
        z, v = interpolate(x, batch.draws.normal("noise", x.shape[1:]), t)
        if models.velocity is not None and self.velocity != "data":
            rows = equal.nonzero().squeeze(1).to(x.device) if self.own_target else slice(None)
            v[rows] = models.velocity(z[rows], t[rows], batch.y[rows]).to(v.dtype)
        third = batch.draws.uniform("third-time")
        length = mean_length(batch.time_shift, self.ratio_to_data)
        return Points(z, r, t, batch.y, v, longer, batch.progress, third, length)

    def weight(self, points: Points) -> Tensor | None:
        """(B,), of each row by its interval, 1 where r = t; None for 1 throughout."""
        p, rule = points, INTERVAL_WEIGHTS[self.interval_weight]
        if rule is None:
            return None
        interval = Interval(p.r, p.t, p.progress.to(p.t), p.mean_length)
        return rule(interval).masked_fill(p.r == p.t, 1)


def r_equals_t(positions: Tensor, ratio: float) -> Tensor:
    """Which samples have r = t, by their positions: (B,) booleans, spread evenly over the run."""
    longer, positions = 1 - ratio, positions.double()
    return ((positions + 1) * longer + 1e-6).floor() == (positions * longer + 1e-6).floor()


def rows_with_interval(equal: Tensor, ratio: float) -> Tensor:
    """(M,) indices of the rows that are not ``equal`` (B,), as many in every batch of B rows: the last may be repeated.

    With one count there is one shape to compile; nothing is repeated where the share of B is a whole number.
    """
    import torch

    longer = (~equal).nonzero().squeeze(1)
    missing = ceil(len(equal) * (1 - ratio) - 1e-6) - len(longer)
    return torch.cat([longer, longer[-1:].expand(missing)]) if len(longer) and missing > 0 else longer
