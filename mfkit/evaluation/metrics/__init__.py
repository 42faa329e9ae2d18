"""The table of metrics: one file each, and one line here. The options of ``mfkit fid`` are made from it."""

from dataclasses import make_dataclass

from mfkit.evaluation.metrics.base import Metric
from mfkit.evaluation.metrics.diversity import Diversity
from mfkit.evaluation.metrics.frechet import FrechetDistance
from mfkit.evaluation.metrics.inception_score import InceptionScore
from mfkit.evaluation.metrics.kernel import KernelDistance
from mfkit.evaluation.metrics.precision_recall import DensityCoverage, PrecisionRecall
from mfkit.evaluation.metrics.spatial import SpatialDistance
from mfkit.setting import Settings, setting

FID = FrechetDistance()
"""Always computed."""
ALIASES = {"is": "inception-score"}
"""Of ``--metrics``."""

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        SpatialDistance(),
        KernelDistance(),
        InceptionScore(),
        PrecisionRecall(),
        DensityCoverage(),
        Diversity(),
    )
}

MetricSettings: type[Settings] = make_dataclass(
    "MetricSettings",
    [(name.replace("-", "_"), bool, setting(False, metric.help)) for name, metric in METRICS.items()],
    bases=(Settings,),
    namespace={"heading": "Metrics", "__module__": __name__},
    frozen=True,
    kw_only=True,
)
"""A switch for each."""
