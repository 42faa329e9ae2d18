"""The mean-flow loss as one writes it down first, to measure ours against."""

import torch
from torch import Tensor

from mfkit.flow.derivative import AverageVelocity
from mfkit.flow.losses import Loss
from mfkit.flow.times import per_row
from mfkit.training.meanflow import Objective


def plain_mean_flow(step: float) -> Objective:
    """u at z, z + h v and z - k v in one batch of three times the rows: every row, every evaluation with gradients.

    The released MF-RAE code does so. Value and gradient are those of
    :func:`~mfkit.flow.losses.mean_flow` with the central difference of half-width ``step``.
    """

    def loss(
        u: AverageVelocity, derivative: object, z: Tensor, r: Tensor, t: Tensor, y: Tensor, v: Tensor, *,
        power: float, offset: float, **unused: object,
    ) -> Loss:  # fmt: skip
        later, earlier = (t + step).clamp(max=1), torch.maximum(t - step, r)
        points = torch.cat([z, z + per_row(later - t, z) * v, z - per_row(t - earlier, z) * v])
        here, ahead, behind = u(points, r.repeat(3), torch.cat([t, later, earlier]), y.repeat(3)).chunk(3)
        target = v - per_row(t - r, z) * (ahead - behind) / per_row(later - earlier, z)
        squared = (here - target.detach()).square().flatten(1)
        total = squared.sum(1)
        return Loss(((total.detach() + offset) ** -power * total).mean(), squared.mean().detach())

    return loss
