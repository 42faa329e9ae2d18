"""Fréchet distance between two sets of features, by their means and covariances (FID, arXiv 1706.08500)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mfkit.evaluation.metrics.base import Metric

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mfkit.evaluation.image_set import ImageSet
    from mfkit.evaluation.moments import Moments


class FrechetDistance(Metric):
    """FID, and the same distance in other features."""

    name = "fid"
    help = "Fréchet distance of the features."
    needs: ClassVar = {"features": "moments"}

    def compute(self, samples: ImageSet, reference: ImageSet) -> dict[str, Any]:
        return {"frechet_distance": frechet_distance(samples.moments("features"), reference.moments("features"))}


def frechet_distance(one: Moments, other: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))."""
    return frechet_distances([other], one)[0]


def frechet_distances(several: Iterable[Moments], one: Moments) -> list[float]:
    """The distances of several to one, whose root is taken once.

    The trace of (C1 C2)^(1/2) is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric,
    so that no complex numbers arise when a covariance is singular. NaN where features were not finite.
    """
    import numpy as np

    several = list(several)
    if not all(np.isfinite(found.covariance).all() for found in (one, *several)):
        return len(several) * [float("nan")]
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    distances = []
    for other in several:
        product = np.linalg.eigvalsh(root @ other.covariance @ root)
        cross = np.sqrt(product.clip(min=0)).sum()
        gap = one.mean - other.mean
        distances.append(float(gap @ gap + np.trace(one.covariance) + np.trace(other.covariance) - 2 * cross))
    return distances
