"""One of the two sets of images that an evaluation compares: seen image by image, or known by its statistics."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Subset

from mfkit.artifacts.artifact import INDEX_NAME, file_digest
from mfkit.data.dataset import MapDataset
from mfkit.data.images import ImageDataset, ImageFolder, open_images
from mfkit.data.loader import Dataset, all_batches
from mfkit.data.skip import SkipPolicy
from mfkit.data.stream import StreamDataset
from mfkit.errors import InputError, UsageError
from mfkit.evaluation.features import INCEPTION_WIDTH, FeatureExtractor
from mfkit.evaluation.moments import Moments, Statistics, read_statistics

logger = logging.getLogger(__name__)

_SAMPLING_CONDITIONS = (
    "model", "model_digest", "nfe", "solver", "time_grid", "time_shift", "times", "labels", "seed", "precision",
    "guidance", "trained_spaces",
)  # fmt: skip


@dataclass(frozen=True)
class ImageSet:
    """Images as a feature extractor sees them, or statistics alone."""

    conditions: dict[str, Any]
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    """Of the extractor, (N, D) each, and ``pixels`` (N, 3, S, S) uint8 where they are wanted; empty for statistics."""
    labels: Tensor | None = None
    statistics: Mapping[str, Moments] = field(default_factory=dict)

    def moments(self, output: str) -> Moments:
        """Mean and covariance of an output.

        :raises InputError: only other statistics were given.
        """
        if output in self.outputs:
            return Moments.of(self.outputs[output].numpy())
        if output not in self.statistics:
            raise InputError(f"{self.conditions['location']} holds no statistics of Inception's {output} features")
        return self.statistics[output]


def see_images(
    location: str, extractor: FeatureExtractor, outputs: Collection[str], size: int | None, *, batch_size: int,
    workers: int, count: int | None = None,
) -> ImageSet:  # fmt: skip
    """The images that an IMAGES argument names.

    :param outputs: of the extractor, and perhaps ``pixels``.
    :param size: to which they are cut, where it is given.
    :param count: how many of them, spread evenly; None is all.
    """
    dataset = open_images(location, size)
    conditions = _conditions(dataset, location)
    extracted = [name for name in outputs if name in extractor.outputs]
    columns: dict[str, list[Tensor]] = {name: [] for name in (*extracted, "labels")}
    pixels = []
    for batch in all_batches(_subset(dataset, count), batch_size, workers):
        images = batch.columns["image"]
        for name, value in extractor.extract(images, extracted).items():
            columns[name].append(value)
        columns["labels"].append(batch.columns["label"])
        pixels += [images] if "pixels" in outputs else []
    if sum(map(len, columns["labels"])) < 2:
        raise InputError(f"{location}: a Fréchet distance needs two images or more on either side")
    found = {name: torch.cat(values) for name, values in columns.items()}
    labels = found.pop("labels")
    found |= {"pixels": torch.cat(pixels)} if pixels else {}
    return ImageSet({**conditions, "images": len(labels), "size": images.shape[-1]}, found, labels)


def known_statistics(location: str, extractor: FeatureExtractor, asked: Collection[str]) -> ImageSet | None:
    """The statistics in a reference's file, where it holds them and they are enough; None where it has images.

    :param asked: the options given that need the images themselves.
    """
    path = Path(location)
    found = read_statistics(path) if path.suffix == ".npz" else None
    if not found:
        return None
    mismatch = _mismatch(found, extractor)
    if found.has_images and (asked or mismatch):
        return None
    if asked:
        raise UsageError(f"{next(iter(asked))} needs the reference's images; {location} holds statistics of them alone")
    if mismatch:
        raise InputError(f"{location} holds statistics of other features ({mismatch}), and no images")
    resize = extractor.conditions["resize"]
    if not found.conditions and resize != "legacy-tf":
        logger.warning(
            "%s does not say how its images were resized; ADM's reference batches were by legacy-tf, and with --resize "
            "%s on the samples' side alone the distance is too large", location, resize,
        )  # fmt: skip
    of = {name: value for name, value in asdict(found.of).items() if value is not None}
    conditions = {"location": location, "digest": found.digest, "images": found.of.images, "size": found.of.size}
    return ImageSet(conditions | ({"of": found.conditions.get("of")} if of else {}), statistics=found.moments)


def _mismatch(found: Statistics, extractor: FeatureExtractor) -> str:
    """In what statistics are not of these features, as far as their file says it; empty where they are."""
    if not found.conditions:
        width = len(found.moments["features"].mean)
        fits = "probabilities" in extractor.outputs and width == INCEPTION_WIDTH
        return "" if fits else f"{width} dimensions"
    names = ("features", "resize", "features_digest")
    odd = [name for name in names if found.conditions.get(name) != extractor.conditions.get(name)]
    return "; ".join(f"{name}: {found.conditions.get(name)}, not {extractor.conditions.get(name)}" for name in odd)


class _Evenly(Subset):
    """Some samples of a dataset, spread evenly over it, since a folder is sorted by class."""

    def __init__(self, dataset: MapDataset, count: int) -> None:
        super().__init__(cast(Any, dataset), [place * len(dataset) // count for place in range(count)])
        self.artifact, self.skips = dataset.artifact, SkipPolicy()


def _subset(dataset: ImageDataset, count: int | None) -> Dataset:
    if count is None:
        return dataset
    if isinstance(dataset, StreamDataset):
        raise UsageError("--count needs a set of a known size, not a stream")
    if count > len(dataset):
        raise UsageError(f"--count {count}: there are only {len(dataset)} images")
    return _Evenly(dataset, count)


def _conditions(dataset: ImageDataset, location: str) -> dict[str, Any]:
    """Where the images come from, and how they were sampled where they say it."""
    result = {"location": location, "digest": dataset.artifact.digest}
    index = Path(location) / INDEX_NAME
    if index.exists():
        result["digest"] = file_digest(index)
    elif isinstance(dataset, ImageFolder) and (native := dataset.other_sizes()):
        result["native_sizes"] = native
    config = dataset.artifact.config
    return result | {name: config[name] for name in _SAMPLING_CONDITIONS if name in config}
