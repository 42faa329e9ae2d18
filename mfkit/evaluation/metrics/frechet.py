"""Fréchet distance between two sets of features, by their means and covariances."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and unbiased covariance (D, D) of features, float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> "Moments":
        """:param features: (N, D), N >= 2."""
        features = features.astype(np.float64)
        return cls(features.mean(0), np.cov(features, rowvar=False).reshape(2 * features.shape[1:]))


def frechet_distance(one: Moments, other: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (FID, arXiv 1706.08500).

    The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric, so
    that no complex numbers arise when a covariance is singular.
    """
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ other.covariance @ root)
    cross = np.sqrt(product.clip(min=0)).sum()
    gap = one.mean - other.mean
    return float(gap @ gap + np.trace(one.covariance) + np.trace(other.covariance) - 2 * cross)
