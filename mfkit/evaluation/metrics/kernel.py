"""Kernel Inception Distance (KID, arXiv 1801.01401)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mfkit.evaluation.metrics.base import Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mfkit.evaluation.image_set import ImageSet

_SUBSETS = 100
_SUBSET_SIZE = 1000


class KernelDistance(Metric):
    name = "kid"
    help = f"KID too, over {_SUBSETS} subsets of at most {_SUBSET_SIZE:,} images."
    needs: ClassVar = {"features": "rows"}

    def compute(self, samples: ImageSet, reference: ImageSet) -> dict[str, Any]:
        ours, theirs = (side.rows("features").numpy() for side in (samples, reference))
        subsets = {"count": _SUBSETS, "size": min(_SUBSET_SIZE, len(ours), len(theirs))}
        return {"kernel_distance": kernel_distance(ours, theirs), "kernel_distance_subsets": subsets}


def kernel_distance(samples: NDArray[np.floating], reference: NDArray[np.floating], seed: int = 0) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3, a mean over subsets drawn with ``seed``.

    Subsets are those of clean-fid, which would hold all rows in float64 at once.

    :param samples: (N, D), :param reference: (M, D).
    """
    import numpy as np

    random, size = np.random.RandomState(seed), min(_SUBSET_SIZE, len(samples), len(reference))
    found = 0.0
    for _ in range(_SUBSETS):
        real, ours = (
            rows[random.choice(len(rows), size, replace=False)].astype(np.float64) for rows in (reference, samples)
        )
        within = (real @ real.T / real.shape[1] + 1) ** 3 + (ours @ ours.T / ours.shape[1] + 1) ** 3
        between = (real @ ours.T / ours.shape[1] + 1) ** 3
        found += (within.sum() - np.trace(within)) / (size - 1) - 2 * between.sum() / size
    return float(found / _SUBSETS / size)
