"""Of a student that descended a distance: which figures are no evidence, and one that is."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mfkit.evaluation.features import FeatureRequest, open_features
from mfkit.evaluation.image_set import ImageSet, see_images, size_beside
from mfkit.evaluation.metrics import FID
from mfkit.evaluation.space import Space

logger = logging.getLogger(__name__)


def was_trained_on(conditions: Mapping[str, Any], trained: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a distance was descended in these features; those of latents are of the RAE's encoder."""
    digest, of_encoder = conditions.get("features_digest"), str(conditions["features"]).startswith("RAE encoder")
    return any(
        (digest and one.get("features_digest") == digest)
        or (of_encoder and str(one.get("features")).startswith("latents"))
        for one in trained
    )


def untrained_distance(
    samples: str, images: Sequence[str], ours: ImageSet, count: int | None, reading: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The distance in a space that nothing is trained on, beside one that may have been; None without real images."""
    names = ", ".join(one["space"] for one in ours.conditions["trained_spaces"])
    logger.warning("%s: the model was trained by its distance in %s, where a figure is no evidence", samples, names)
    if not images:
        logger.warning("the reference is statistics alone: give its images, for a space that was not trained on")
        return None
    size, (reference,) = ours.conditions["size"], images
    space = Space("pixels", open_features(FeatureRequest(features="pixels")), [FID])
    views = [(space.extractor, space.needs())]
    (space.samples,) = see_images(samples, views, size, count=count, **reading)
    (space.reference,) = see_images(reference, views, size_beside(reference, size), **reading)
    return FID.compute(space.samples, space.reference) | {"features": space.extractor.conditions["features"]}
