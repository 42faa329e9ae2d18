"""Precision and recall of generated images: how many lie among the real ones, and the other way (arXiv 1904.06991)."""

import torch
from torch import Tensor

_ROWS = 1024
"""Rows of a distance matrix held at a time."""


def precision_recall(samples: Tensor, reference: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Share of samples within the manifold of the reference, and of the reference within that of the samples.

    A manifold is the union of the balls around its points, each as wide as the distance to the k-th nearest other
    point.

    :param samples: (N, D), :param reference: (M, D); N, M > ``neighbours``.
    """
    return _share_within(samples, reference, neighbours), _share_within(reference, samples, neighbours)


def _share_within(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    radii = torch.cat(  # the nearest of all is the point itself
        [torch.cdist(part, manifold).kthvalue(neighbours + 1).values for part in manifold.split(_ROWS)]
    )
    inside = [(torch.cdist(part, manifold) <= radii).any(1) for part in points.split(_ROWS)]
    return float(torch.cat(inside).double().mean())
