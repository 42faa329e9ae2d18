"""Whether generated images are as varied as real ones, and whether they are copies: what a Fréchet distance hides."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

from mfkit.errors import UsageError
from mfkit.evaluation.metrics.base import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from mfkit.evaluation.image_set import ImageSet


logger = logging.getLogger(__name__)

_IMAGES = 256
"""Held as numbers at a time."""


class Diversity(Metric):
    name = "diversity"
    help = "Compare the pixels too: variance within classes, nearest real images."
    needs: ClassVar = {"pixels": "rows"}

    def compute(self, samples: ImageSet, reference: ImageSet) -> dict[str, Any]:
        images, real = (side.rows("pixels") for side in (samples, reference))
        if images.shape[1:] != real.shape[1:]:
            raise UsageError("--diversity compares pixels; the images are of unequal sizes")
        nearest = nearest_distances(images, real)
        quantiles = nearest.quantile(nearest.new_tensor([0.05, 0.5, 0.95])).tolist()
        result = {"nearest_reference_distance": dict(zip(("5%", "median", "95%"), quantiles, strict=True))}
        assert samples.labels is not None and reference.labels is not None
        classes = [len(labels.unique()) for labels in (samples.labels, reference.labels)]
        if min(classes) == 1 < max(classes):
            logger.warning("one side has labels and the other has none: no variance within classes is given")
            return result
        ours, theirs = within_class_variance(images, samples.labels), within_class_variance(real, reference.labels)
        return {"within_class_variance": {"samples": ours, "reference": theirs, "ratio": ours / theirs}} | result


def within_class_variance(images: Tensor, labels: Tensor) -> float:
    """Mean over the classes of the pixels' variance, summed over pixels.

    :param images: (N, ...) in [0, 1], or uint8 in [0, 255].
    :param labels: (N,); classes of a single image do not count.
    """
    classes = [(labels == label).nonzero().squeeze(1) for label in labels.unique()]
    variances = [_variance(images, places) for places in classes if len(places) > 1]
    return sum(variances) / len(variances) if variances else float("nan")


def _variance(images: Tensor, places: Tensor) -> float:
    """Of the images at these places, summed over pixels; a part of them is held at a time."""
    parts = places.split(_IMAGES)
    mean = sum(_unit(images[part]).double().sum(0) for part in parts) / len(places)
    return float(sum((_unit(images[part]).double() - mean).square().sum() for part in parts)) / (len(places) - 1)


def nearest_distances(images: Tensor, reference: Tensor) -> Tensor:
    """(N,) the distance of each image to the nearest reference image: root mean square over pixels, in [0, 1].

    :param images: (N, ...) in [0, 1], or uint8 in [0, 255], as ``reference``.
    """
    return _nearest(images, reference)[0]


def nearest_indices(images: Tensor, reference: Tensor) -> Tensor:
    """(N,) which reference image is the nearest to each image."""
    return _nearest(images, reference)[1]


def _nearest(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    import torch

    distances, indices = torch.full((len(images),), torch.inf), torch.zeros(len(images), dtype=torch.long)
    for first in range(0, len(images), _IMAGES):
        part, rows = _unit(images[first : first + _IMAGES]), slice(first, first + _IMAGES)
        for begin in range(0, len(reference), _IMAGES):
            found, places = torch.cdist(part, _unit(reference[begin : begin + _IMAGES])).min(1)
            closer = found < distances[rows]
            distances[rows] = torch.where(closer, found, distances[rows])
            indices[rows] = torch.where(closer, places + begin, indices[rows])
    return distances / images[0].numel() ** 0.5, indices


def _unit(images: Tensor) -> Tensor:
    """(N, pixels) float32 in [0, 1]."""
    import torch

    flat = images.flatten(1)
    return flat.float() / 255 if flat.dtype == torch.uint8 else flat.float()
