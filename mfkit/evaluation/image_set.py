"""One of the two sets that an evaluation compares: measured image by image, or known by its statistics."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from mfkit.artifacts.artifact import INDEX_NAME, file_digest, open_artifact
from mfkit.data.images import ImageFolder, ImageSource, open_images
from mfkit.data.npz import NpzImages
from mfkit.data.sequence import Rows, batches_of
from mfkit.data.stream import ShardStream
from mfkit.errors import InputError, UsageError
from mfkit.evaluation.features import INCEPTION_WIDTH, Features
from mfkit.evaluation.metrics.frechet import Moments
from mfkit.evaluation.statistics import Statistics, read_statistics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Side:
    """Features of a set of images, or their statistics alone, and the set's conditions."""

    moments: Moments
    conditions: dict[str, Any]
    features: Tensor | None = None
    """(N, D); None where only statistics were given."""
    probabilities: Tensor | None = None
    labels: Tensor | None = None
    pixels: Tensor | None = None
    """(N, 3, S, S) uint8, where diversity is wanted."""


def measured(
    location: str, features: Features, size: int | None, *, batch_size: int, workers: int, count: int | None = None,
    probabilities: bool = False, pixels: bool = False,
) -> Side:  # fmt: skip
    """The images that an IMAGES argument names, cut to ``size`` where it is given.

    :param count: how many of them, spread evenly; None is all.
    :param probabilities: keep Inception's class probabilities too; ``pixels``: the images themselves.
    """
    source = open_images(location, size)
    taken, classes, labels, kept = [], [], [], []
    conditions = _conditions(source, location)
    for batch in batches_of(_part(source, count), batch_size, workers):
        images = batch.columns["image"]
        taken.append(features.take(images))
        labels.append(batch.columns["label"])
        if probabilities and features.probabilities:
            classes.append(features.probabilities(images))
        if pixels:
            kept.append(images)
    if not taken or sum(map(len, taken)) < 2:
        raise InputError(f"{location}: a Fréchet distance needs two images or more on either side")
    rows = torch.cat(taken)
    conditions = {**conditions, "images": len(rows), "size": images.shape[-1]}
    return Side(
        Moments.of(rows.numpy()), conditions, rows, torch.cat(classes) if classes else None, torch.cat(labels),
        torch.cat(kept) if kept else None,
    )  # fmt: skip


def known(location: str, features: Features, asked: Collection[str]) -> Side | None:
    """The statistics in a reference's file, where it holds them and they are enough; None where it has images.

    :param asked: the options given that need the images themselves.
    """
    path = Path(location)
    found = read_statistics(path) if path.suffix == ".npz" else None
    if not found:
        return None
    unfit = _unfit(found, features)
    if found.has_images and (asked or unfit):
        return None
    if asked:
        raise UsageError(f"{next(iter(asked))} needs the reference's images; {location} holds statistics of them alone")
    if unfit:
        raise InputError(f"{location} holds statistics of other features ({unfit}), and no images")
    resize = features.described["resize"]
    if not found.conditions and resize != "legacy-tf":
        logger.warning(
            "%s does not say how its images were resized; ADM's reference batches were by legacy-tf, and with --resize "
            "%s on the samples' side alone the distance is too large", location, resize,
        )  # fmt: skip
    of = found.conditions.get("of", {})
    conditions = {"location": location, "digest": found.digest, "images": of.get("images"), "size": of.get("size")}
    return Side(Moments(found.mean, found.covariance), conditions | ({"of": of} if of else {}))


def _unfit(found: Statistics, features: Features) -> str:
    """In what statistics are not of these features, as far as their file says it; empty where they are."""
    if not found.conditions:
        fits = features.probabilities is not None and len(found.mean) == INCEPTION_WIDTH
        return "" if fits else f"{len(found.mean)} dimensions"
    names = ("features", "resize", "features_digest")
    odd = [name for name in names if found.conditions.get(name) != features.described.get(name)]
    return "; ".join(f"{name}: {found.conditions.get(name)}, not {features.described.get(name)}" for name in odd)


def _part(source: ImageSource, limit: int | None) -> Rows:
    """``limit`` images, spread evenly over the set, since a folder is sorted by class; all with ``limit`` None."""
    if limit is None:
        return source
    if isinstance(source, ShardStream):
        raise UsageError("--count needs a set of a known size: a folder, an .npz, or shards that mfkit wrote")
    total = len(source)
    if limit > total:
        raise UsageError(f"--count {limit}: there are only {total} images")
    picked: Dataset = Subset(cast(Dataset, source), [place * total // limit for place in range(limit)])
    return cast(Rows, picked)


def _conditions(source: ImageSource, location: str) -> dict[str, Any]:
    """Where the images come from, and how they were drawn where they say it."""
    result = {"location": location, "digest": source.artifact.digest}
    folder = Path(location)
    config: dict[str, Any] = {}
    if folder.is_dir() and (folder / INDEX_NAME).exists():
        config = open_artifact(folder).config
        result["digest"] = file_digest(folder / INDEX_NAME)
    elif isinstance(source, NpzImages | ShardStream):
        config = source.artifact.config
    elif isinstance(source, ImageFolder) and (native := source.other_sizes()):
        result["native_sizes"] = native
    names = ("model", "model_digest", "nfe", "solver", "time_shift", "labels", "seed", "precision", "guidance")
    return result | {name: config[name] for name in names if name in config}
