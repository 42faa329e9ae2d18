"""What objectives on an interval r <= t of the straight path share: the law of the times, the weight of a sample."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, ClassVar

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


@dataclass(frozen=True, kw_only=True)
class IntervalObjective(Objective):
    """A loss at points of the path, by the teacher's velocity, or the conditional one, e - x, where there is none."""

    heading: ClassVar[str] = "Losses on an interval"
    stages: ClassVar[tuple[Stage, ...]] = ("distill", "bootstrap", "train-mean-flow")

    ratio_r_equals_t: float = setting(0.75, "Share of samples with r = t.", metavar="P", min=0, max=1)
    norm_p: float = setting(1.0, "p of the weight 1 / (||error||^2 + eps)^p of a sample.", metavar="P", min=0)
    norm_eps: float = setting(1e-3, "eps of that weight.", metavar="EPS", min=0)

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
        r = t.where(equal.to(x.device, non_blocking=True), times.amin(1))
        z, v = interpolate(x, batch.draws.normal("noise", x.shape[1:]), t)
        if models.velocity is not None:
            v = models.velocity(z, t, batch.y)
        return Points(z, r, t, batch.y, v.to(z.dtype), longer, batch.progress)


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
