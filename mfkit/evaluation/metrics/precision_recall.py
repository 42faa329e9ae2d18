"""Precision and recall of generated images: how many lie among the real ones, and the other way (arXiv 1904.06991)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mfkit.errors import InputError
from mfkit.evaluation.metrics.base import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from mfkit.evaluation.image_set import ImageSet

_NEIGHBOURS, _PRDC_NEIGHBOURS = 3, 5
_DISTANCES = 2**26
"""Of a distance matrix held at a time."""


class PrecisionRecall(Metric):
    name = "precision-recall"
    help = f"Precision and recall too, by {_NEIGHBOURS} nearest neighbours."
    needs: ClassVar = {"features": "rows"}

    def compute(self, samples: ImageSet, reference: ImageSet) -> dict[str, Any]:
        ours, theirs = _rows(samples, reference, _NEIGHBOURS)
        precision, recall = precision_recall(ours, theirs, _NEIGHBOURS)
        return {"precision": precision, "recall": recall}


class DensityCoverage(Metric):
    name = "prdc"
    help = f"Precision, recall, density and coverage too, by {_PRDC_NEIGHBOURS} nearest neighbours (arXiv 2002.09797)."
    needs: ClassVar = {"features": "rows"}

    def compute(self, samples: ImageSet, reference: ImageSet) -> dict[str, Any]:
        ours, theirs = _rows(samples, reference, _PRDC_NEIGHBOURS)
        precision, recall = precision_recall(ours, theirs, _PRDC_NEIGHBOURS)
        density, coverage = density_coverage(ours, theirs, _PRDC_NEIGHBOURS)
        found = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
        return {"prdc": found | {"neighbours": _PRDC_NEIGHBOURS}}


def _rows(samples: ImageSet, reference: ImageSet, neighbours: int) -> tuple[Tensor, Tensor]:
    ours, theirs = samples.rows("features"), reference.rows("features")
    if min(len(ours), len(theirs)) <= neighbours:
        raise InputError(f"precision and recall need more than {neighbours} images on either side")
    return ours, theirs


def density_coverage(samples: Tensor, reference: Tensor, neighbours: int) -> tuple[float, float]:
    """How many balls of reference points a sample lies in, by k; share of the balls that hold a sample.

    :param samples: (N, D), :param reference: (M, D); M > ``neighbours``.
    """
    import torch

    radii = _radii(reference, neighbours)
    counts = torch.zeros(len(reference), dtype=torch.float64)
    for part in _parts(samples, reference):
        counts += (torch.cdist(part, reference) <= radii).double().sum(0)
    return float(counts.sum() / (neighbours * len(samples))), float((counts > 0).double().mean())


def precision_recall(samples: Tensor, reference: Tensor, neighbours: int = _NEIGHBOURS) -> tuple[float, float]:
    """Share of samples within the manifold of the reference, and of the reference within that of the samples.

    A manifold is the union of the balls around its points, each as wide as the distance to the k-th nearest other
    point.

    :param samples: (N, D), :param reference: (M, D); N, M > ``neighbours``.
    """
    return _share_within(samples, reference, neighbours), _share_within(reference, samples, neighbours)


def _share_within(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    import torch

    radii = _radii(manifold, neighbours)
    inside = [(torch.cdist(part, manifold) <= radii).any(1) for part in _parts(points, manifold)]
    return float(torch.cat(inside).double().mean())


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """(N,) the distance of each point to its k-th nearest other one."""
    import torch

    # The nearest of all is the point itself.
    parts = _parts(points, points)
    return torch.cat([torch.cdist(part, points).kthvalue(neighbours + 1).values for part in parts])


def _parts(points: Tensor, others: Tensor) -> Sequence[Tensor]:
    """Rows whose distances to all others are held at a time."""
    return points.split(max(1, _DISTANCES // len(others)))
