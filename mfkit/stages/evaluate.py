"""fid: how far generated images are from real ones, with every condition that moves the figure."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from mfkit.data.images import ImageFolder, ImageSource, open_images
from mfkit.data.npz import NpzImages
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
    pixels: Tensor | None = None
    """(N, 3, S, S) uint8, where diversity is wanted."""


def evaluate(samples: str, reference: str, wanted: Evaluation, *, overwrite: bool) -> dict[str, Any]:
    """The Fréchet distance of samples to a reference, and what else is wanted, with the conditions of it all."""
    if wanted.save_stats:
        claim(wanted.save_stats, overwrite=overwrite, suffix=".npz")
    features = _features(wanted)
    statistics = _statistics(reference, features, wanted)
    one = _measured(samples, features, features.image_size, wanted, count=wanted.count, probabilities=wanted.score)
    if statistics:
        other = statistics
    else:
        # An .npz is taken as it is; other images are cut to the samples' size.
        size = features.image_size if reference.endswith(".npz") else one.conditions["size"]
        other = _measured(reference, features, size, wanted)
    _warn(one, other)
    result: dict[str, Any] = {"frechet_distance": frechet_distance(one.moments, other.moments)}
    if one.probabilities is not None:
        mean, deviation = inception_score(one.probabilities[_shuffled(len(one.probabilities))])
        result["inception_score"] = {"mean": mean, "std": deviation}
    if one.features is not None and other.features is not None:
        result |= _of_features(one.features, other.features, wanted)
    result |= features.described | {"samples": one.conditions, "reference": other.conditions}
    if wanted.diversity:
        result |= _diversity(one, other)
    if wanted.save_stats:
        conditions = features.described | {"of": other.conditions}
        write_statistics(wanted.save_stats, other.moments.mean, other.moments.covariance, conditions)
    return result


def _of_features(ours: Tensor, theirs: Tensor, wanted: Evaluation) -> dict[str, float]:
    """The figures that need the features of every image."""
    result = {}
    if wanted.kernel:
        result["kernel_distance"] = kernel_distance(ours.numpy(), theirs.numpy())
    if wanted.manifold:
        if min(len(ours), len(theirs)) <= _NEIGHBOURS:
            raise InputError(f"precision and recall need more than {_NEIGHBOURS} images on either side")
        result["precision"], result["recall"] = precision_recall(ours, theirs, _NEIGHBOURS)
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
        return inception_features(device, wanted.resize, wanted.inception)
    if path.suffix == ".safetensors":
        return rae_features(weights.load_rae(path).to(device), file_digest(path))
    encoder = timm_encoder(wanted.features, {}, _TIMM_SIZE, wanted.features_weights)
    return timm_features(wanted.features, encoder.network, encoder.size, encoder.mean, encoder.std, device)


def _statistics(location: str, features: Features, wanted: Evaluation) -> _Side | None:
    """The reference's statistics, where its file holds them and they are what is wanted; None where it has images."""
    path = Path(location)
    found = read_statistics(path) if path.suffix == ".npz" else None
    if not found:
        return None
    images_wanted = {"--kid": wanted.kernel, "--precision-recall": wanted.manifold, "--diversity": wanted.diversity}
    asked = [option for option, given in images_wanted.items() if given]
    unfit = _unfit(found, features, wanted)
    if found.has_images and (asked or unfit):
        return None
    if asked:
        raise UsageError(f"{asked[0]} needs the reference's images; {location} holds statistics of them alone")
    if unfit:
        raise InputError(f"{location} holds statistics of other features ({unfit}), and no images")
    if not found.conditions and wanted.resize != "legacy-tf":
        logger.warning(
            "%s does not say how its images were resized; ADM's reference batches were by legacy-tf, and with --resize "
            "%s on the samples' side alone the distance is too large", location, wanted.resize,
        )  # fmt: skip
    of = found.conditions.get("of", {})
    conditions = {"location": location, "digest": found.digest, "images": of.get("images"), "size": of.get("size")}
    return _Side(Moments(found.mean, found.covariance), conditions | ({"of": of} if of else {}))


def _unfit(found: Statistics, features: Features, wanted: Evaluation) -> str:
    """In what statistics are not of these features, as far as their file says it; empty where they are."""
    if not found.conditions:
        fits = wanted.features == INCEPTION and len(found.mean) == INCEPTION_WIDTH
        return "" if fits else f"{len(found.mean)} dimensions"
    names = ("features", "resize", "features_digest")
    odd = [name for name in names if found.conditions.get(name) != features.described.get(name)]
    return "; ".join(f"{name}: {found.conditions.get(name)}, not {features.described.get(name)}" for name in odd)


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
    conditions = {**conditions, "images": len(rows), "size": images.shape[-1]}
    return _Side(
        Moments.of(rows.numpy()), conditions, rows, torch.cat(classes) if classes else None, torch.cat(labels),
        torch.cat(pixels) if pixels else None,
    )  # fmt: skip


def _warn(one: _Side, other: _Side) -> None:
    """Says what moves the figure without being an error."""
    dimensions = len(one.moments.mean)
    if len(other.moments.mean) != dimensions:
        raise InputError(f"the reference has {len(other.moments.mean)} feature dimensions, the samples {dimensions}")
    ours, theirs = one.conditions.get("size"), other.conditions.get("size")
    if ours and theirs and ours != theirs:
        logger.warning(
            "the samples are of %d pixels, the reference of %d: the features see one of them blurred, and the distance "
            "is too large", ours, theirs,
        )  # fmt: skip
    for name, side in (("samples", one), ("reference", other)):
        count = side.conditions.get("images")
        if count and count <= dimensions:
            logger.warning(
                "%s: %d images are fewer than the %d feature dimensions: the covariance is singular and the distance "
                "biased upwards", name, count, dimensions,
            )  # fmt: skip
        native = side.conditions.get("native_sizes")
        if native:
            logger.warning(
                "%s: images of %s pixels were cut and resized to %d: the distance depends on how", name,
                native, side.conditions["size"],
            )  # fmt: skip


def _diversity(one: _Side, other: _Side) -> dict[str, Any]:
    assert one.pixels is not None and other.pixels is not None
    assert one.labels is not None and other.labels is not None
    if one.pixels.shape[1:] != other.pixels.shape[1:]:
        raise UsageError("--diversity compares pixels; the images are of unequal sizes")
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
    config: dict[str, Any] = {}
    if folder.is_dir() and (folder / INDEX_NAME).exists():
        config = open_artifact(folder).config
        result["digest"] = file_digest(folder / INDEX_NAME)
    elif isinstance(source, NpzImages):
        config = source.artifact.config
    elif isinstance(source, ImageFolder) and (native := source.other_sizes()):
        result["native_sizes"] = native
    names = ("model", "model_digest", "nfe", "solver", "time_shift", "labels", "seed", "precision", "guidance")
    return result | {name: config[name] for name in names if name in config}
