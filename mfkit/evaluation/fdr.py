"""FDr: distances in several spaces by those of real images, in one figure (arXiv 2604.28190)."""

from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import Any

from mfkit.errors import InputError, UsageError
from mfkit.evaluation.features import PUBLISHED_VALIDATION, FeatureExtractor, FeatureRequest
from mfkit.evaluation.image_set import Need, see_images
from mfkit.evaluation.metrics.frechet import frechet_distance
from mfkit.evaluation.space import Space

PUBLISHED = "imagenet256"
"""The word for the published validation distances, in place of validation images."""


def check_published(features: Sequence[FeatureRequest]) -> None:
    if unknown := [one.features for one in features if one.features not in PUBLISHED_VALIDATION]:
        raise UsageError(f"--validation {PUBLISHED}: no distance in {unknown[0]} is published; give images")


def fdr(
    spaces: Sequence[Space], figures: Mapping[str, Mapping[str, Any]], validation: str, size: int | None,
    reading: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """FDr: the mean over the spaces of the samples' distance by that of real images (arXiv 2604.28190)."""
    if validation == PUBLISHED:
        distances = {space.name: PUBLISHED_VALIDATION[space.name] for space in spaces}
    else:
        views: list[tuple[FeatureExtractor, Collection[Need]]] = [
            (space.extractor, [("features", "moments")]) for space in spaces
        ]
        seen = see_images(validation, views, size, **reading)
        distances = {}
        for space, held_out in zip(spaces, seen, strict=True):
            assert space.reference
            distance = frechet_distance(held_out.moments("features"), space.reference.moments("features"))
            same = held_out.conditions["digest"] == space.reference.conditions["digest"]
            if same or not 0 < distance < inf:
                raise InputError(
                    f"--validation {validation} has a distance of {distance:.3g} to the reference in {space.name}: "
                    "give real images that the reference does not hold"
                )
            distances[space.name] = distance
    ratios = [figures[name]["frechet_distance"] / distance for name, distance in distances.items()]
    told = {"of": validation, "validation_distances": distances}
    return {"fdr": sum(ratios) / len(ratios), "fdr_conditions": told}
