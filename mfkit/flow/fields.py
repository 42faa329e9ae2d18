"""Fields between distributions: where generated vectors should move, so that they are distributed as real ones.

Many sets of vectors are compared at once: (..., N, D). Vectors come in units in which their usual distance is sqrt(D).
A field is scaled by whoever uses it. To add one: a line in :data:`FIELDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_SELF = 100.0
"""Added to the distance of a vector to itself, in units of the usual one, so that it does not repel itself."""


@dataclass(frozen=True)
class Vectors:
    """What a field is taken of."""

    x: Tensor
    """(..., N, D), generated: those to be moved."""
    others: Tensor
    """(..., Q, D), generated too; they repel."""
    real: Tensor
    """(..., P, D), they attract."""
    jitter: Callable[[], Tensor]
    """Draws that of x, (..., N, D), in units of temperature times usual distance."""
    iterations: float
    """Of Sinkhorn's algorithm; half a one stops after the rows."""

    @property
    def dimensions(self) -> int:
        return self.x.shape[-1]

    @property
    def generated(self) -> Tensor:
        """(..., N + Q, D), x first."""
        import torch

        return torch.cat([self.x, self.others], -2)


@dataclass(frozen=True)
class Field:
    """A field, and the mean distance that its temperatures are a share of."""

    move: Callable[[Vectors, float], Tensor]
    """(vectors, temperature) -> (..., N, D)."""
    power: int
    """p of the usual distance, mean(d^p)^(1/p)."""


def two_sided(vectors: Vectors, temperature: float) -> Tensor:
    """Drifting (arXiv 2602.04770): affinities by the geometric mean of two softmaxes, over either side.

    V_i = S-_i sum_j A_ij real_j - S+_i sum_k A_ik generated_k, where S+ and S- are the row sums of A over the real and
    over the generated vectors; A has the least value 1e-3, as in the authors' code.
    """
    import torch

    real, generated = vectors.real, vectors.generated
    distances = torch.cat([_from_itself(vectors.x, generated), torch.cdist(vectors.x, real)], -1)
    logits = -distances / (vectors.dimensions**0.5 * temperature)
    affinity = (logits.softmax(-1) * logits.softmax(-2)).clamp(min=1e-6).sqrt()
    repelled, attracted = affinity.split([generated.shape[-2], real.shape[-2]], -1)
    return repelled.sum(-1, True) * (attracted @ real) - attracted.sum(-1, True) * (repelled @ generated)


def softmax(vectors: Vectors, temperature: float) -> Tensor:
    """Drift-RAE (arXiv 2606.15553): the softmax over the real vectors less that over the generated ones, at jittered
    places; the jitter takes the place of the second softmax."""
    import torch

    scale = vectors.dimensions**0.5 * temperature
    at = vectors.x + scale * vectors.jitter()
    toward = (-torch.cdist(at, vectors.real) / scale).softmax(-1) @ vectors.real
    return toward - (-_from_itself(at, vectors.generated) / scale).softmax(-1) @ vectors.generated


def sinkhorn(vectors: Vectors, temperature: float) -> Tensor:
    """W-Flow (arXiv 2605.11755): T(x; real) - T(x; others), T the barycentre of the entropic transport plan.

    The cost is |x - y|^2 / 2, the regularisation temperature times D. Half an iteration leaves the softmax over the
    rows alone, whose field descends the KL divergence; none weighs each row by its kernel sum, whose field descends the
    maximum mean discrepancy.
    """
    import torch

    x, sides = vectors.x, (vectors.real, vectors.others)
    logits = [-0.5 * torch.cdist(x, y).square() / (temperature * vectors.dimensions) for y in sides]
    if vectors.iterations:
        pull, push = (transport(one, vectors.iterations) @ y for one, y in zip(logits, sides, strict=True))
    else:
        highest = torch.stack([one.amax() for one in logits]).amax()
        kernels = [(one - highest).exp() / one.shape[-1] for one in logits]
        usual = torch.stack([one.sum(-1).mean() for one in kernels]).mean()  # one factor for all, so that none vanish
        pull, push = (k / usual @ y - k.sum(-1, True) / usual * x for k, y in zip(kernels, sides, strict=True))
    return pull - push


def transport(logits: Tensor, iterations: float) -> Tensor:
    """Rows of the entropic transport plan between uniform marginals, each divided by its sum: (..., N, Q).

    :param logits: (..., N, Q), minus the cost by the regularisation.
    """
    rows, columns = logits.shape[-2:]
    v = logits.new_zeros(columns)
    for _ in range(int(iterations)):
        u = -log(rows) - (logits + v).logsumexp(-1, keepdim=True)
        v = -log(columns) - (logits + u).logsumexp(-2, keepdim=True)
    return (logits + v).softmax(-1)  # the last half of an iteration, and the division, are a softmax


def usual_distance(x: Tensor, generated: Tensor, real: Tensor, power: int) -> Tensor:
    """mean(d^p)^(1/p) of the distances of x to all, one number for each of the groups in (G, M, N, D): (G, 1, 1, 1)."""
    import torch

    distances = torch.cat([torch.cdist(x, generated), torch.cdist(x, real)], -1)
    return distances.pow(power).mean((1, 2, 3), keepdim=True) ** (1 / power)


def _from_itself(at: Tensor, generated: Tensor) -> Tensor:
    """Distances of N vectors to the generated ones, of which they are the first."""
    import torch

    distances = torch.cdist(at, generated)
    same = torch.eye(at.shape[-2], generated.shape[-2], device=at.device, dtype=at.dtype)
    return distances + _SELF * at.shape[-1] ** 0.5 * same


FIELDS: dict[str, Field] = {
    "two-sided": Field(two_sided, power=1),
    "token": Field(softmax, power=1),
    "sinkhorn": Field(sinkhorn, power=2),
}
