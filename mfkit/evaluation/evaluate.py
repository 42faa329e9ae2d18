"""fid: how far generated images are from real ones, with every condition that moves the figure."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from mfkit.errors import InputError, UsageError
from mfkit.evaluation.compare import compare, read_result, standard_error
from mfkit.evaluation.fdr import PUBLISHED, check_published, fdr
from mfkit.evaluation.features import FeatureRequest, open_features
from mfkit.evaluation.image_set import ImageSet, known_statistics, see_images, size_beside
from mfkit.evaluation.metrics import FID, METRICS
from mfkit.evaluation.moments import SUFFIXES, Statistics, read_statistics, write_statistics
from mfkit.evaluation.paired import Measure, compare_pairs
from mfkit.evaluation.space import Space
from mfkit.evaluation.trained_spaces import untrained_distance, was_trained_on

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured, and how the images are read."""

    features: Sequence[FeatureRequest] = (FeatureRequest(),)
    """Spaces, all seen in one pass; the first is that of the figures without a name."""
    metrics: Sequence[str] = ()
    """Of the table, besides the Fréchet distance."""
    count: int | None = None
    """Samples to use; None is all."""
    groups: int = 1
    """Of samples: from two on, the standard error of the distance is told, by leaving out one after the other."""
    validation: str | None = None
    """Real images that the reference does not hold, or :data:`PUBLISHED`: distances are set against theirs."""
    save_stats: Path | None = None
    """A file for the reference's statistics."""
    against: Path | None = None
    """An earlier result that this one is compared with."""
    paired: Mapping[str, Measure] = field(default_factory=dict)
    """Of reconstructions beside the reference's images, by name."""
    force: bool = False
    """Whether a protocol that no paper uses is taken anyway."""
    batch_size: int = 32
    workers: int = 0


def evaluate(samples: str, references: Sequence[str], asked: Evaluation) -> dict[str, Any]:
    """The figures of samples against real images, with the conditions of them all. All processes call it.

    :param references: images, or statistics of them, of each space at most once.
    """
    if asked.save_stats and len(asked.features) > 1:
        raise UsageError("--save-stats writes the statistics of one space: give --features one name")
    before = read_result(asked.against) if asked.against else None
    if before and asked.groups == 1:
        raise UsageError(f"--against {asked.against} needs --resample, which tells how sure a distance is")
    if asked.validation == PUBLISHED:
        check_published(asked.features)
    statistics = {
        location: found
        for location in references
        if location.endswith(".npz") and (found := read_statistics(Path(location)))
    }
    images = [location for location in references if location not in statistics or statistics[location].has_images]
    if len(images) > 1:
        raise UsageError(f"--reference {images[1]}: one set of real images is enough, {images[0]}")
    requests = [replace(one, resize=_resize(one, statistics, force=asked.force)) for one in asked.features]
    spaces = [Space(request.features, open_features(request), [FID]) for request in requests]
    _add_metrics(spaces, asked.metrics)
    size = _common_size(spaces)
    for space in spaces:
        space.reference = _known(statistics, space, images)
        _check_images(space, images)
    reading: dict[str, Any] = dict(batch_size=asked.batch_size, workers=asked.workers)
    if asked.paired and not images:
        raise UsageError("--paired needs the reference's images; there are statistics of them alone")
    pairs = compare_pairs(samples, images[0], asked.paired, count=asked.count, **reading) if asked.paired else {}
    views = [(space.extractor, space.needs()) for space in spaces]
    ours = see_images(samples, views, size, count=asked.count, groups=asked.groups, **reading)
    for space, seen in zip(spaces, ours, strict=True):
        space.samples = seen
    cut = ours[0].conditions["size"]
    if unseen := [space for space in spaces if space.needs_of_reference()]:
        own_size = size_beside(images[0], cut, size)
        views = [(space.extractor, set(space.needs_of_reference())) for space in unseen]
        for space, seen in zip(unseen, see_images(images[0], views, own_size, **reading), strict=True):
            space.reference = space.reference.with_images(seen) if space.reference else seen
    figures = {space.name: _figures(space, asked.groups) for space in spaces}
    trained = ours[0].conditions.get("trained_spaces", [])
    for conditions in figures.values():
        if was_trained_on(conditions, trained):
            conditions["trained_on"] = True
    first, result = spaces[0], dict(figures[spaces[0].name])
    assert first.samples and first.reference
    if len(spaces) > 1:
        result["spaces"] = figures
    if asked.validation:
        result |= fdr(spaces, figures, asked.validation, size_beside(asked.validation, cut, size), reading)
    if trained:
        distance = figures.get("pixels") or untrained_distance(samples, images, first.samples, asked.count, reading)
        result |= {"trained_spaces": trained, "untrained": distance}
    result |= {"samples": first.samples.conditions, "reference": first.reference.conditions}
    if asked.save_stats:
        real = first.reference
        if asked.force and real.statistics:
            raise UsageError("--save-stats: statistics that --force compares would be written with a resize of others")
        of = {name: real.moments(name) for name in SUFFIXES if real.has_moments(name)}
        write_statistics(asked.save_stats, of, first.extractor.conditions | {"of": real.conditions})
    if before:
        result["against"] = compare(result, before, asked.against)
    return result | ({"paired": pairs} if pairs else {})


def _resize(request: FeatureRequest, statistics: Mapping[str, Statistics], *, force: bool) -> Any:
    """How images are resized: as the user says, else as the reference's statistics were.

    :raises UsageError: no paper compares what was asked for with such statistics.
    """
    if request.features != "inception":
        return "clean" if request.resize == "auto" else request.resize
    said = {str(found.conditions.get("resize", "legacy-tf")) for found in statistics.values() if found.of_inception}
    unsaid = [location for location, found in statistics.items() if found.of_inception and not found.conditions]
    if request.resize == "auto":
        return "legacy-tf" if unsaid else said.pop() if len(said) == 1 else "clean"
    if unsaid and request.resize == "clean" and not force:
        raise UsageError(
            f"{unsaid[0]} holds statistics that do not say their resize, as ADM's, which were by legacy-tf: --resize "
            "clean on the samples' side alone makes the distance too large; leave it out, or insist by --force"
        )
    return request.resize


def _add_metrics(spaces: Sequence[Space], names: Sequence[str]) -> None:
    """Each metric to the spaces that give what it needs; one of the pixels to the first."""
    for metric in (METRICS[name] for name in names):
        outputs = set(metric.needs) - {"pixels"}
        able = [space for space in spaces if outputs <= set(space.extractor.outputs)]
        if not able:
            missing = outputs - set(spaces[0].extractor.outputs)
            raise UsageError(f"--{metric.name} needs Inception's {missing.pop()}: it needs --features inception")
        for space in able if outputs else able[:1]:
            space.metrics.append(metric)


def _common_size(spaces: Sequence[Space]) -> int | None:
    sizes = {space.extractor.image_size: space.name for space in spaces if space.extractor.image_size}
    if len(sizes) > 1:
        raise UsageError(f"--features: {' and '.join(sizes.values())} take images of different sizes")
    return next(iter(sizes), None)


def _known(statistics: Mapping[str, Statistics], space: Space, images: Sequence[str]) -> ImageSet | None:
    """The reference's statistics of a space; None where they are not known, and there are images.

    :raises InputError: there are statistics of other spaces alone.
    """
    why: InputError | None = None
    for location, found in statistics.items():
        try:
            if known := known_statistics(location, found, space.extractor):
                return known
        except InputError as error:
            why = why or error
    if why and not images:
        raise why
    return None


def _check_images(space: Space, images: Sequence[str]) -> None:
    """:raises UsageError: a metric needs images of the reference, and there are none."""
    needed = space.needs_of_reference()
    if not needed or images:
        return
    assert space.reference
    (output, kept), metric = next(iter(needed.items()))
    location = space.reference.conditions["location"]
    if kept == "moments":
        raise InputError(f"{location} holds no statistics of Inception's {output} features")
    raise UsageError(f"--{metric.name} needs the reference's images; {location} holds statistics of them alone")


def _figures(space: Space, groups: int) -> dict[str, Any]:
    """What is measured in a space, and how sure its distance is."""
    assert space.samples and space.reference
    _compare_conditions(space.samples, space.reference)
    result: dict[str, Any] = {}
    for metric in space.metrics:
        result |= metric.compute(space.samples, space.reference)
    for name, value in result.items():
        if isinstance(value, float) and not isfinite(value):
            raise InputError(f"{name} in {space.name} is not finite: the features are too large, or not numbers")
    if groups > 1:
        result["standard_error"] = standard_error(space.samples, space.reference, groups)
    return result | space.extractor.conditions


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
