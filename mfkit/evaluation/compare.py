"""How sure a distance is, and whether two results of ``fid`` differ by more than noise."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfkit.artifacts.json_files import parse, parse_known, read_json
from mfkit.errors import InputError, UsageError
from mfkit.evaluation.image_set import ImageSet
from mfkit.evaluation.metrics.frechet import frechet_distances

_RETRAINING = 0.02
"""Share of a distance that another seed of the training moves it by (arXiv 2606.20536)."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What is compared of a result."""

    frechet_distance: float
    standard_error: float
    features: str
    resize: str
    features_digest: str | None = None
    samples: dict[str, Any] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)


def standard_error(ours: ImageSet, real: ImageSet, groups: int) -> float:
    """Of the Fréchet distance, by the jackknife: over the distances without one of the groups of samples."""
    if ours.conditions["images"] < 2 * groups:
        raise UsageError(f"--resample {groups}: {ours.conditions['images']} samples are too few for so many groups")
    parts = [ours.moments("features", without) for without in range(groups)]
    distances = frechet_distances(parts, real.moments("features"))
    mean = sum(distances) / groups
    return float(((groups - 1) / groups * sum((value - mean) ** 2 for value in distances)) ** 0.5)


def read_result(file: Path) -> Result:
    """A result that ``fid --resample`` printed.

    :raises InputError: it is none, or does not say how sure it is.
    """
    document = parse(dict, read_json(file), file)
    if "standard_error" not in document:
        raise InputError(f"{file} does not tell how sure its distance is: measure it with --resample")
    return parse_known(Result, document, file)


def compare(result: Mapping[str, Any], before: Result, source: object) -> dict[str, Any]:
    """The difference of a result to an earlier one, and whether it is noise, of the images drawn or of the training.

    :param source: of the earlier one. :raises InputError: they were measured otherwise.
    """
    now = parse_known(Result, result, "this result")
    for name in ("features", "features_digest", "resize"):
        if getattr(before, name) != getattr(now, name):
            told = f"{name} was {getattr(before, name)}, is {getattr(now, name)}"
            raise InputError(f"{source} was measured otherwise: {told}")
    if before.reference.get("digest") != now.reference.get("digest"):
        raise InputError(f"{source} was measured against another reference")
    for name in ("images", "labels"):  # fewer images are farther by chance alone, and so are random classes
        then, is_now = before.samples.get(name), now.samples.get(name)
        if then != is_now:
            raise InputError(f"{source} was measured on other samples: {name} was {then}, is {is_now}")
    drawn = 2 * (before.standard_error**2 + now.standard_error**2) ** 0.5
    trained = _RETRAINING * max(before.frechet_distance, now.frechet_distance)
    difference = now.frechet_distance - before.frechet_distance
    verdict = "noise" if abs(difference) < max(drawn, trained) else "better" if difference < 0 else "worse"
    noise = {"of_images": drawn, "of_another_training": trained}
    return {"file": str(source), "difference": difference, "noise": noise, "verdict": verdict}
