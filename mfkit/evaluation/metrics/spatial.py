"""sFID: the Fréchet distance of Inception's spatial features (arXiv 2103.03841), as ADM's evaluation reports it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mfkit.evaluation.metrics.base import Metric
from mfkit.evaluation.metrics.frechet import frechet_distance

if TYPE_CHECKING:
    from mfkit.evaluation.image_set import ImageSet


class SpatialDistance(Metric):
    """It sees where things are, which the pooled features of FID do not."""

    name = "sfid"
    help = "sFID too, by Inception's spatial features."
    needs: ClassVar = {"spatial": "moments"}

    def compute(self, samples: ImageSet, reference: ImageSet) -> dict[str, Any]:
        return {"spatial_frechet_distance": frechet_distance(samples.moments("spatial"), reference.moments("spatial"))}
