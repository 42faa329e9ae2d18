"""fid: how far generated images are from real ones, with every condition that moves the figure."""

import logging
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from mfkit.errors import InputError, UsageError
from mfkit.evaluation.features import FeatureRequest, open_features
from mfkit.evaluation.image_set import ImageSet, known_statistics, see_images
from mfkit.evaluation.metrics import FID, METRICS
from mfkit.evaluation.metrics.base import Metric
from mfkit.evaluation.moments import SUFFIXES, write_statistics

logger = logging.getLogger(__name__)


def evaluate(
    samples: str, reference: str, features: FeatureRequest, metrics: Sequence[str] = (), *, count: int | None = None,
    save_stats: Path | None = None, batch_size: int = 250, workers: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The metrics of samples against a reference, with the conditions of them all.

    :param metrics: names of the table, besides the Fréchet distance. :param count: samples to use; None is all.
    :param save_stats: a file for the reference's statistics.
    """
    chosen: list[Metric] = [FID, *(METRICS[name] for name in metrics)]
    extractor = open_features(features)
    outputs = {output for metric in chosen for output in metric.outputs}
    for metric in chosen:
        if missing := set(metric.outputs) - {*extractor.outputs, "pixels"}:
            raise UsageError(f"--{metric.name} needs Inception's {missing.pop()}: it needs --features inception")
    seen = dict(batch_size=batch_size, workers=workers)
    asked = [f"--{metric.name}" for metric in chosen if not metric.from_statistics]
    real = known_statistics(reference, extractor, asked)
    ours = see_images(samples, extractor, outputs, extractor.image_size, count=count, **seen)
    if real is None:
        # An .npz is taken as it is; other images are cut to the samples' size.
        size = extractor.image_size if reference.endswith(".npz") else ours.conditions["size"]
        needed = {output for metric in chosen if not metric.samples_alone for output in metric.outputs}
        real = see_images(reference, extractor, needed, size, **seen)
    _compare_conditions(ours, real)
    result: dict[str, Any] = {}
    for metric in chosen:
        result |= metric.compute(ours, real)
    if not isfinite(result["frechet_distance"]):
        raise InputError(f"the distance of {samples} to {reference} is not finite: their features are too large")
    if trained := ours.conditions.get("trained_spaces"):
        result |= {"trained_spaces": trained, "untrained": _untrained(samples, reference, ours, real, count, seen)}
    result |= extractor.conditions | {"samples": ours.conditions, "reference": real.conditions}
    if save_stats:
        of = {name: real.moments(name) for name in SUFFIXES if name in real.outputs or name in real.statistics}
        write_statistics(save_stats, of, extractor.conditions | {"of": real.conditions})
    return result


def _untrained(
    samples: str, reference: str, ours: ImageSet, real: ImageSet, count: int | None, seen: dict[str, int]
) -> dict[str, Any] | None:
    """The distance in a space that nothing is trained on, beside one that may have been; None without real images."""
    names = ", ".join(one["space"] for one in ours.conditions["trained_spaces"])
    logger.warning("%s: the model was trained by its distance in %s, where a figure is no evidence", samples, names)
    extractor, size = open_features(FeatureRequest(features="pixels")), ours.conditions["size"]
    try:
        alone = known_statistics(reference, extractor, [])
    except InputError:  # of other features
        alone = real
    if alone:
        logger.warning("%s holds statistics alone: give its images, for a space that was not trained on", reference)
        return None
    one = see_images(samples, extractor, ("features",), size, count=count, **seen)
    other = see_images(reference, extractor, ("features",), None if reference.endswith(".npz") else size, **seen)
    return FID.compute(one, other) | {"features": extractor.conditions["features"]}


def _compare_conditions(ours: ImageSet, real: ImageSet) -> None:
    """Warns of what moves the figure without being an error.

    :raises InputError: the two sides have features of different widths.
    """
    dimensions = [len(one.moments("features").mean) for one in (ours, real)]
    if dimensions[0] != dimensions[1]:
        raise InputError(f"the reference has {dimensions[1]} feature dimensions, the samples {dimensions[0]}")
    sizes = ours.conditions.get("size"), real.conditions.get("size")
    if all(sizes) and sizes[0] != sizes[1]:
        logger.warning(
            "the samples are of %d pixels, the reference of %d: the features see one of them blurred, and the distance "
            "is too large", *sizes,
        )  # fmt: skip
    for name, side in (("samples", ours), ("reference", real)):
        count = side.conditions.get("images")
        if count and count <= dimensions[0]:
            logger.warning(
                "%s: %d images are fewer than the %d feature dimensions: the covariance is singular and the distance "
                "biased upwards", name, count, dimensions[0],
            )  # fmt: skip
        if native := side.conditions.get("native_sizes"):
            logger.warning(
                "%s: images of %s pixels were cut and resized to %d: the distance depends on how", name,
                native, side.conditions["size"],
            )  # fmt: skip
