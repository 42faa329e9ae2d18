"""A feature space: what is measured in it, and the two sides."""

from dataclasses import dataclass

from mfkit.evaluation.features import FeatureExtractor
from mfkit.evaluation.image_set import ImageSet, Need
from mfkit.evaluation.metrics.base import Metric


@dataclass
class Space:
    """Filled as the images are seen."""

    name: str
    extractor: FeatureExtractor
    metrics: list[Metric]
    samples: ImageSet | None = None
    reference: ImageSet | None = None

    def needs(self) -> set[Need]:
        return {need for metric in self.metrics for need in metric.needs.items()}

    def needs_of_reference(self) -> dict[Need, Metric]:
        """What the reference's images must be seen for, beyond known statistics, and by which metric."""
        known = self.reference.statistics if self.reference else {}
        return {
            (output, kept): metric
            for metric in self.metrics
            for output, kept in metric.needs.items()
            if not (metric.samples_alone or (kept == "moments" and output in known))
        }
