"""fid: how far generated images are from real ones, with every condition that moves the figure."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from mfkit.data.images import ImageSource, open_images
from mfkit.data.sequence import Rows, batches_of
from mfkit.data.shards import ShardStream
from mfkit.data.statistics import Statistics, read_statistics, write_statistics
from mfkit.errors import InputError, UsageError
from mfkit.files import weights
from mfkit.files.artifact import INDEX_NAME, file_digest, open_artifact
from mfkit.files.atomic import claim
from mfkit.metrics.diversity import nearest_distances, within_class_variance
from mfkit.metrics.features import (
    INCEPTION,
    INCEPTION_WIDTH,
    Features,
    Resize,
    inception_features,
    rae_features,
    timm_features,
)
from mfkit.metrics.frechet import Moments, frechet_distance
from mfkit.metrics.inception_score import inception_score
from mfkit.metrics.kernel import kernel_distance
from mfkit.metrics.manifold import precision_recall
from mfkit.processes import processes
from mfkit.stages.encoders import timm_encoder

logger = logging.getLogger(__name__)

_NEIGHBOURS = 3
_TIMM_SIZE = 224
"""Side of the input of a timm encoder, as FD-DINOv2 is defined."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What to measure, and by which features."""

    features: str = INCEPTION
    """``inception``, an RAE file, or a timm model."""
    resize: Resize = "clean"
    inception: Path | None = None
    """Local copy of Inception's TorchScript file."""
    features_weights: Path | None = None
    """Local copy of the weights of a timm model."""
    count: int | None = None
    """Samples to use; None is all."""
    diversity: bool = False
    kernel: bool = False
    score: bool = False
    manifold: bool = False
    save_stats: Path | None = None
    batch_size: int = 250
    workers: int = 0


@dataclass(frozen=True)
class _Side:
    """One of the two sets, measured: images, or the statistics of their features alone."""

    moments: Moments
    conditions: dict[str, Any]
    features: Tensor | None = None
    """(N, D); None where only statistics were given."""
    probabilities: Tensor | None = None
    labels: Tensor | None = None
    size: int | None = None
    """Side of the images in pixels."""
    pixels: Tensor | None = None
    """(N, 3, S, S) uint8, where diversity is wanted."""


def evaluate(samples: str, reference: str, wanted: Evaluation, *, overwrite: bool) -> dict[str, Any]:
    """The Fréchet distance of samples to a reference, and what else is wanted, with the conditions of it all."""
    if wanted.save_stats:
        claim(wanted.save_stats, overwrite=overwrite, suffix=".npz")
    features = _features(wanted)
    one = _measured(samples, features, features.image_size, wanted, count=wanted.count, probabilities=wanted.score)
    other = _reference(reference, features, one.size, wanted)
    _warn(one, other)
    result: dict[str, Any] = {"frechet_distance": frechet_distance(one.moments, other.moments)}
    if wanted.kernel:
        ours, theirs = _both(one, other, "--kid")
        result["kernel_distance"] = kernel_distance(ours.numpy(), theirs.numpy())
    if one.probabilities is not None:
        mean, deviation = inception_score(one.probabilities[_shuffled(len(one.probabilities))])
        result["inception_score"] = {"mean": mean, "std": deviation}
    if wanted.manifold:
        ours, theirs = _both(one, other, "--precision-recall")
        if min(len(ours), len(theirs)) <= _NEIGHBOURS:
            raise InputError(f"precision and recall need more than {_NEIGHBOURS} images on either side")
        precision, recall = precision_recall(ours, theirs, _NEIGHBOURS)
        result |= {"precision": precision, "recall": recall}
    result |= features.described | {"samples": one.conditions, "reference": other.conditions}
    if wanted.diversity:
        result |= _diversity(one, other)
    if wanted.save_stats:
        conditions = features.described | {"images": other.conditions["images"], "of": other.conditions}
        write_statistics(wanted.save_stats, other.moments.mean, other.moments.covariance, conditions)
    return result


def _features(wanted: Evaluation) -> Features:
    device, path = processes().device, Path(wanted.features)
    if wanted.features != INCEPTION and wanted.inception:
        raise UsageError("--inception is the file of --features inception")
    if wanted.features != INCEPTION and wanted.score:
        raise UsageError("--inception-score is of Inception's classes: it needs --features inception")
    if wanted.features != INCEPTION and wanted.resize != "clean":
        raise UsageError(f"--resize {wanted.resize} is Inception's way; it needs --features inception")
    if wanted.features_weights and (wanted.features == INCEPTION or path.suffix == ".safetensors"):
        raise UsageError("--features-weights gives a timm model its weights; name it with --features")
    if wanted.features == INCEPTION:
        features = inception_features(device, wanted.resize, wanted.inception)
        used = wanted.inception
    elif path.suffix == ".safetensors":
        features, used = rae_features(weights.load_rae(path).to(device)), path
    else:
        encoder = timm_encoder(wanted.features, {}, _TIMM_SIZE, wanted.features_weights)
        features = timm_features(wanted.features, encoder.network, encoder.size, encoder.mean, encoder.std, device)
        used = wanted.features_weights
    if used:
        features.described["features_digest"] = file_digest(used)
    return features


def _reference(location: str, features: Features, size: int | None, wanted: Evaluation) -> _Side:
    """The reference measured, or its statistics where its file holds them and they are of these features."""
    path = Path(location)
    found = read_statistics(path) if path.suffix == ".npz" else None
    images_wanted = wanted.kernel or wanted.manifold or wanted.diversity
    if found and found.has_images and (images_wanted or not _fits(found, features, wanted)):
        found = None
    if not found:
        # An .npz is taken as it is; other images are cut to the samples' size.
        return _measured(location, features, features.image_size if path.suffix == ".npz" else size, wanted)
    if not _fits(found, features, wanted):
        told = found.conditions.get("features", f"{len(found.mean)} dimensions")
        raise InputError(f"{location} holds statistics of other features ({told}), and no images")
    if not found.conditions and wanted.resize != "legacy-tf":
        logger.warning(
            "%s does not say how its images were resized; ADM's reference batches were by legacy-tf, and with --resize "
            "%s on the samples' side alone the distance is too large", location, wanted.resize,
        )  # fmt: skip
    conditions = {"location": location, "digest": found.digest, "images": found.conditions.get("images")}
    if "of" in found.conditions:
        conditions["of"] = found.conditions["of"]
    return _Side(Moments(found.mean, found.covariance), conditions)


def _fits(found: Statistics, features: Features, wanted: Evaluation) -> bool:
    """Whether statistics are of these features, as far as their file says it."""
    if found.conditions:
        names = ("features", "resize", "features_digest")
        return all(found.conditions.get(name) == features.described.get(name) for name in names)
    return wanted.features == INCEPTION and len(found.mean) == INCEPTION_WIDTH


def _measured(
    location: str, features: Features, size: int | None, wanted: Evaluation, *, count: int | None = None,
    probabilities: bool = False,
) -> _Side:  # fmt: skip
    source = open_images(location, size)
    taken, classes, labels, pixels = [], [], [], []
    conditions = _conditions(source, location)
    for batch in batches_of(_part(source, count), wanted.batch_size, wanted.workers):
        images = batch.columns["image"]
        taken.append(features.take(images))
        labels.append(batch.columns["label"])
        if probabilities and features.probabilities:
            classes.append(features.probabilities(images))
        if wanted.diversity:
            pixels.append(images)
    if not taken or sum(map(len, taken)) < 2:
        raise InputError(f"{location}: a Fréchet distance needs two images or more on either side")
    rows = torch.cat(taken)
    conditions = {"images": len(rows), "size": images.shape[-1], **conditions}
    return _Side(
        Moments.of(rows.numpy()), conditions, rows, torch.cat(classes) if classes else None, torch.cat(labels),
        images.shape[-1], torch.cat(pixels) if pixels else None,
    )  # fmt: skip


def _warn(one: _Side, other: _Side) -> None:
    """Says what moves the figure without being an error."""
    dimensions = len(one.moments.mean)
    if len(other.moments.mean) != dimensions:
        raise InputError(f"the reference has {len(other.moments.mean)} feature dimensions, the samples {dimensions}")
    if one.size and other.size and one.size != other.size:
        logger.warning(
            "the samples are of %d pixels, the reference of %d: the features see one of them blurred, and the distance "
            "is too large", one.size, other.size,
        )  # fmt: skip
    for name, side in (("samples", one), ("reference", other)):
        if side.features is not None and len(side.features) <= dimensions:
            logger.warning(
                "%d %s are fewer than the %d feature dimensions: the covariance is singular and the distance "
                "biased upwards", len(side.features), name, dimensions,
            )  # fmt: skip


def _both(one: _Side, other: _Side, option: str) -> tuple[Tensor, Tensor]:
    if one.features is None or other.features is None:
        raise UsageError(f"{option} needs the reference's images; statistics of them are not enough")
    return one.features, other.features


def _diversity(one: _Side, other: _Side) -> dict[str, Any]:
    if one.pixels is None or other.pixels is None or one.labels is None or other.labels is None:
        raise UsageError("--diversity needs the reference's images; statistics of them are not enough")
    if one.size != other.size:
        raise UsageError(f"--diversity compares pixels; the images are of {one.size} and {other.size} pixels")
    images, real = one.pixels.float() / 255, other.pixels.float() / 255
    ours, theirs = within_class_variance(images, one.labels), within_class_variance(real, other.labels)
    nearest = nearest_distances(images, real).quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    return {
        "within_class_variance": {"samples": ours, "reference": theirs, "ratio": ours / theirs},
        "nearest_reference_distance": dict(zip(("5%", "median", "95%"), nearest, strict=True)),
    }


def _shuffled(count: int) -> Tensor:
    """An order in which no split of the Inception Score is of few classes; always the same."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


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
    if folder.is_dir() and (folder / INDEX_NAME).exists():
        config = open_artifact(folder).config
        names = ("model", "nfe", "solver", "time_shift", "labels", "seed", "precision", "guidance")
        result |= {name: config[name] for name in names if name in config}
        result["digest"] = file_digest(folder / INDEX_NAME)
    return result
