"""fid: how far generated images are from real ones, with every condition that moves the figure."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfkit.artifacts.artifact import file_digest
from mfkit.artifacts.atomic import claimed
from mfkit.autoencoders import weights
from mfkit.autoencoders.encoders import timm_encoder
from mfkit.errors import InputError, UsageError
from mfkit.evaluation.features import (
    INCEPTION,
    Features,
    Resize,
    inception_features,
    rae_features,
    timm_features,
)
from mfkit.evaluation.image_set import Side, known, measured
from mfkit.evaluation.metrics.diversity import nearest_distances, within_class_variance
from mfkit.evaluation.metrics.frechet import frechet_distance
from mfkit.evaluation.metrics.inception_score import inception_score
from mfkit.evaluation.metrics.kernel import kernel_distance
from mfkit.evaluation.metrics.manifold import precision_recall
from mfkit.evaluation.statistics import write_statistics
from mfkit.formats.hub import local
from mfkit.runtime.distributed import processes

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
    features_weights: str | None = None
    """Local copy of the weights of a timm model, or its place on the hub."""
    count: int | None = None
    """Samples to use; None is all."""
    diversity: bool = False
    kernel: bool = False
    score: bool = False
    manifold: bool = False
    save_stats: Path | None = None
    batch_size: int = 250
    workers: int = 0


def evaluate(samples: str, reference: str, wanted: Evaluation, *, overwrite: bool) -> dict[str, Any]:
    """The Fréchet distance of samples to a reference, and what else is wanted, with the conditions of it all."""
    with claimed(wanted.save_stats, overwrite=overwrite, suffix=".npz") if wanted.save_stats else nullcontext():
        return _evaluated(samples, reference, wanted)


def _evaluated(samples: str, reference: str, wanted: Evaluation) -> dict[str, Any]:
    features = _features(wanted)
    needs_images = {"--kid": wanted.kernel, "--precision-recall": wanted.manifold, "--diversity": wanted.diversity}
    other = known(reference, features, [option for option, given in needs_images.items() if given])
    measure = partial(
        measured, features=features, batch_size=wanted.batch_size, workers=wanted.workers, pixels=wanted.diversity
    )
    one = measure(samples, size=features.image_size, count=wanted.count, probabilities=wanted.score)
    if other is None:
        # An .npz is taken as it is; other images are cut to the samples' size.
        size = features.image_size if reference.endswith(".npz") else one.conditions["size"]
        other = measure(reference, size=size)
    _warn(one, other)
    distance = frechet_distance(one.moments, other.moments)
    if not isfinite(distance):
        raise InputError(f"the distance of {samples} to {reference} is not finite: their features are too large")
    result: dict[str, Any] = {"frechet_distance": distance}
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
    file = local(wanted.features_weights) if wanted.features_weights else None
    encoder = timm_encoder(wanted.features, {}, _TIMM_SIZE, file)
    return timm_features(wanted.features, encoder.network, encoder.size, encoder.mean, encoder.std, device)


def _warn(one: Side, other: Side) -> None:
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


def _diversity(one: Side, other: Side) -> dict[str, Any]:
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
