"""Precision and recall of generated images: how many lie among the real ones, and the other way (arXiv 1904.06991)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mfkit.errors import InputError
from mfkit.evaluation.metrics.base import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from mfkit.evaluation.image_set import ImageSet

_NEIGHBOURS = 3
_ROWS = 1024
"""Rows of a distance matrix held at a time."""


class PrecisionRecall(Metric):
    name = "precision-recall"
    help = f"Precision and recall too, by {_NEIGHBOURS} nearest neighbours."
    outputs = ("features",)

    def compute(self, samples: ImageSet, reference: ImageSet) -> dict[str, Any]:
        ours, theirs = samples.outputs["features"], reference.outputs["features"]
        if min(len(ours), len(theirs)) <= _NEIGHBOURS:
            raise InputError(f"precision and recall need more than {_NEIGHBOURS} images on either side")
        precision, recall = precision_recall(ours, theirs, _NEIGHBOURS)
        return {"precision": precision, "recall": recall}


def precision_recall(samples: Tensor, reference: Tensor, neighbours: int = _NEIGHBOURS) -> tuple[float, float]:
    """Share of samples within the manifold of the reference, and of the reference within that of the samples.

    A manifold is the union of the balls around its points, each as wide as the distance to the k-th nearest other
    point.

    :param samples: (N, D), :param reference: (M, D); N, M > ``neighbours``.
    """
    return _share_within(samples, reference, neighbours), _share_within(reference, samples, neighbours)


def _share_within(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    import torch

    radii = torch.cat(  # the nearest of all is the point itself
        [torch.cdist(part, manifold).kthvalue(neighbours + 1).values for part in manifold.split(_ROWS)]
    )
    inside = [(torch.cdist(part, manifold) <= radii).any(1) for part in points.split(_ROWS)]
    return float(torch.cat(inside).double().mean())
