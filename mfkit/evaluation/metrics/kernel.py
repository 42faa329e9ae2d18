"""Kernel Inception Distance (KID, arXiv 1801.01401)."""

import numpy as np
from numpy.typing import NDArray

SUBSETS = 100
SUBSET_SIZE = 1000


def kernel_distance(samples: NDArray[np.floating], reference: NDArray[np.floating], seed: int = 0) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3, a mean over subsets drawn with ``seed``.

    :param samples: (N, D), :param reference: (M, D).
    """
    from cleanfid.fid import kernel_distance as of_subsets

    state = np.random.get_state()
    np.random.seed(seed)  # clean-fid draws its subsets from NumPy's global state
    try:
        return of_subsets(
            samples.astype(np.float64), reference.astype(np.float64), num_subsets=SUBSETS, max_subset_size=SUBSET_SIZE
        )
    finally:
        np.random.set_state(state)
