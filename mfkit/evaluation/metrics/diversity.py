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


class Diversity(Metric):
    name = "diversity"
    help = "Compare the pixels too: variance within classes, nearest real images."
    needs: ClassVar = {"pixels": "rows"}

    def compute(self, samples: ImageSet, reference: ImageSet) -> dict[str, Any]:
        images, real = (side.rows("pixels").float() / 255 for side in (samples, reference))
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

    :param images: (N, ...) in [0, 1]. :param labels: (N,); classes of a single image do not count.
    """
    import torch

    flat = images.flatten(1).double()
    groups = [flat[labels == label] for label in labels.unique()]
    variances = [group.var(0).sum() for group in groups if len(group) > 1]
    return float(torch.stack(variances).mean()) if variances else float("nan")


def nearest_distances(images: Tensor, reference: Tensor) -> Tensor:
    """(N,) the distance of each image to the nearest reference image: root mean square over pixels, in [0, 1]."""
    return _nearest(images, reference)[0]


def nearest_indices(images: Tensor, reference: Tensor) -> Tensor:
    """(N,) which reference image is the nearest to each image."""
    return _nearest(images, reference)[1]


def _nearest(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    import torch

    flat, others = images.flatten(1).float(), reference.flatten(1).float()
    distances, indices = zip(*(torch.cdist(part, others).min(1) for part in flat.split(256)), strict=True)
    return torch.cat(distances) / flat.shape[1] ** 0.5, torch.cat(indices)
