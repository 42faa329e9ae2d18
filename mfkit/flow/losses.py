"""The losses. Each is a pure function of tensors: no random draws, no state, no schedule."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mfkit.flow.derivative import AverageVelocity, Derivative
from mfkit.flow.times import interpolate, per_row


class Loss(NamedTuple):
    """A loss to descend, and the unweighted error to read."""

    value: Tensor
    """(), what is differentiated."""
    squared_error: Tensor
    """(), mean squared error per element, without weights and without a gradient."""


def flow_matching(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, noise: Tensor, t: Tensor, y: Tensor
) -> Loss:
    """mean((v(z_t, t, y) - (e - x))^2), z_t = (1 - t) x + t e (flow matching, arXiv 2210.02747).

    :param velocity: v(z, t, y), (B, C, H, W).
    :param x: (B, C, H, W), data. :param noise: e, the same shape. :param t: (B,). :param y: (B,).
    """
    z, v = interpolate(x, noise, t)
    return _mean_square(velocity(z, t, y) - v)


def chord_matching(u: AverageVelocity, z_t: Tensor, z_r: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Loss:
    """mean((u(z_t, r, t, y) - (z_t - z_r) / (t - r))^2) for two states of one teacher trajectory, r < t.

    Consistency mid-training for mean flow (CMT, arXiv 2509.24526).

    :param z_t: (B, C, H, W), the state at t (B,). :param z_r: the state at r (B,). :param y: (B,).
    """
    return _mean_square(u(z_t, r, t, y) - (z_t - z_r) / per_row(t - r, z_t))


def mean_flow(
    u: AverageVelocity,
    derivative: Derivative,
    z: Tensor,
    r: Tensor,
    t: Tensor,
    y: Tensor,
    v: Tensor,
    *,
    moving: Tensor | None = None,
    bare_u: AverageVelocity | None = None,
    power: float = 1.0,
    offset: float = 1e-3,
) -> Loss:
    """The mean-flow loss: u(z, r, t, y) against v - (t - r) du/dt, without gradient (MeanFlow, arXiv 2505.13447).

    Each row's squared error ||e||^2 (a sum over elements) is divided by the constant (||e||^2 + offset)^power.
    Distillation takes v from the teacher, bootstrapping v = e - x; nothing else differs.

    :param z: (B, C, H, W), at time t (B,). :param r: (B,), r <= t. :param v: (B, C, H, W), the velocity at z.
    :param moving: (M,), indices of the rows with r < t; du/dt is taken on these alone. An index may stand there twice.
        Without it they are looked up, for which the host waits for the device.
    :param bare_u: the network without its data-parallel wrapper, for du/dt; u itself where there is none.
    """
    v = v.detach().to(z.dtype)
    target = v.clone()
    if moving is None:
        moving = torch.nonzero(r < t).squeeze(1)
    if len(moving):
        rows = [values[moving] for values in (z, r, t, y, v)]
        slope = derivative(bare_u or u, *rows).detach()
        target[moving] -= per_row((t - r)[moving], z) * slope
    squared = (u(z, r, t, y) - target).square().flatten(1)
    total = squared.sum(1)
    weight = (total.detach() + offset) ** -power
    return Loss((weight * total).mean(), squared.mean().detach())


def reconstruction(
    images: Tensor, decoded: Tensor, features: Tensor, decoded_features: Tensor | None, feature_weight: float
) -> Loss:
    """L1 of the pixels plus ``feature_weight`` times the squared distance of the encoder's features (B, C, H, W).

    :param images: (B, 3, S, S) in [0, 1]. :param decoded: the same shape.
    """
    value = (decoded - images).abs().mean()
    if decoded_features is not None:
        value = value + feature_weight * (decoded_features - features).square().mean()
    return Loss(value, (decoded - images).square().mean().detach())


def masked_prediction(
    images: Tensor, predicted: Tensor, labels: Tensor, logits: Tensor | None, label_weight: float
) -> Loss:
    """Squared error of all pixels, hidden and seen, plus ``label_weight`` times the cross-entropy of the labels.

    :param images: (B, 3, S, S), normalised. :param predicted: the same shape. :param logits: (B, classes).
    """
    error = (predicted - images).square().mean()
    if logits is None:
        return Loss(error, error.detach())
    return Loss(error + label_weight * F.cross_entropy(logits, labels), error.detach())


def _mean_square(error: Tensor) -> Loss:
    value = error.square().mean()
    return Loss(value, value.detach())
