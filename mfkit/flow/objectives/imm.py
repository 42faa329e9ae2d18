"""Inductive moment matching: what the student makes of two noise levels has one distribution (arXiv 2503.07565)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mfkit.flow.objectives.base import GRADIENT, Batch, Loss, Models, Objective, Stage
from mfkit.flow.times import expand_to, interpolate
from mfkit.setting import setting

if TYPE_CHECKING:
    from torch import Tensor

_LATEST = 0.994
"""The greatest t; at 1 its noise-to-data ratio is without bound."""
_LEAST_DISTANCE = 1e-8
_EARLIEST = 1e-3
"""The least t, at which the weight of a group is still bounded."""


@dataclass(frozen=True, kw_only=True)
class IMM(Objective):
    """w mean(k(a, a) + k(b, b) - 2 k(a, b)): the distance of maximum mean discrepancy between two groups of particles.

    a = z_t - (t - s) u(z_t, s, t, y), b = sg(z_r - (r - s) u(z_r, s, r, y)), s <= r < t; z_t and z_r have their latents
    and noise in common. All particles of a group have one class and the same times. n(r) = n(t) - 166 / 2^k for
    n(t) = t / (1 - t). k(p, q) = exp(-|p - q| / (D (t - s))), for latents of unit variance; w is that of the paper's
    section 4, with a = 2 and b = 4.
    """

    heading: ClassVar[str] = "Inductive moment matching"
    name: ClassVar[str] = "imm"
    summary: ClassVar[str] = "moments of the map from two noise levels (IMM, arXiv 2503.07565); weak at one step"
    stages: ClassVar[tuple[Stage, ...]] = ("bootstrap", "train-mean-flow")
    experimental: ClassVar[bool] = True

    particles: int = setting(4, "Latents of one class that share their times.", metavar="N", min=1)
    gap: float = setting(
        12.0, "k: the two noise levels are the whole range of t / (1 - t) over 2^k apart.", metavar="K", min=1, max=20
    )

    @property
    def rows_per_sample(self) -> int:
        return self.particles

    @property
    def class_group(self) -> int:
        return self.particles

    def check_batch(self, batch_size: int) -> None:
        if batch_size % self.particles:
            raise ValueError(f"--batch-size {batch_size} does not divide by the {self.particles} rows of a sample")

    def forward_passes(self, stage: Stage) -> float:
        return GRADIENT + 1

    def __call__(self, models: Models, batch: Batch) -> Loss:
        import torch

        x = batch.data["latent"]  # (B, M, C, H, W)
        t = batch.shifted_times("time").clamp(_EARLIEST, _LATEST)
        s = t * batch.draws.uniform("end")
        ratio = t / (1 - t) - _LATEST / (1 - _LATEST) * 2.0**-self.gap
        r = torch.maximum(ratio.clamp(min=0) / (1 + ratio.clamp(min=0)), s)
        e = batch.draws.normal("noise", x.shape[1:])

        def rows(values: Tensor) -> Tensor:
            return values.repeat_interleave(self.particles)

        x, e, t_rows, r_rows, s_rows, y = x.flatten(0, 1), e.flatten(0, 1), rows(t), rows(r), rows(s), rows(batch.y)
        z_t, z_r = interpolate(x, e, t_rows)[0], interpolate(x, e, r_rows)[0]
        a = z_t - expand_to(t_rows - s_rows, z_t) * models.network(z_t, s_rows, t_rows, y)
        with torch.no_grad():
            b = z_r - expand_to(r_rows - s_rows, z_r) * models.unwrapped(z_r, s_rows, r_rows, y)
        a, b = (values.float().flatten(1).unflatten(0, (-1, self.particles)) for values in (a, b))  # (B, M, D)
        scale = (a.shape[-1] * (t - s).clamp(min=_EARLIEST))[:, None, None]

        def kernel(p: Tensor, q: Tensor) -> Tensor:
            squared = (p[:, :, None] - q[:, None]).square().sum(-1)
            return (-squared.clamp(min=_LEAST_DISTANCE).sqrt() / scale).exp()

        discrepancy = (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)).mean((1, 2))
        return Loss((_weight(t) * discrepancy).mean(), (a - b).square().mean().detach())


def _weight(t: Tensor) -> Tensor:
    """1/2 sigmoid(4 - l) (-dl/dt) A^2 / (A^2 + t^2), l = log(A^2 / t^2) and A = 1 - t."""
    import torch

    signal = 1 - t
    log_ratio = 2 * (signal.log() - t.log())
    falling = 2 / (t * signal)
    return 0.5 * torch.sigmoid(4 - log_ratio) * falling * signal.square() / (signal.square() + t.square())
