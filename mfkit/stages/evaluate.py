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
from mfkit.errors import InputError, UsageError
from mfkit.files import weights
from mfkit.files.artifact import INDEX_NAME, file_digest, open_artifact
from mfkit.metrics.diversity import nearest_distances, within_class_variance
from mfkit.metrics.features import INCEPTION, Features, inception_features, rae_features
from mfkit.metrics.frechet import Moments, frechet_distance
from mfkit.processes import processes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Measured:
    """What one pass over a set of images leaves."""

    features: Tensor
    """(N, D)."""
    labels: Tensor
    size: int
    """Side of the images in pixels."""
    pixels: Tensor | None
    """(N, 3, S, S) uint8, where diversity is wanted."""


def evaluate(
    samples: str, reference: str, features: str, *, count: int | None, diversity: bool, batch_size: int, workers: int
) -> dict[str, Any]:
    """The Fréchet distance of samples to a reference, and, with ``diversity``, the pixels' comparison."""
    extract, described, size = _features(features)
    sides = {}
    for name, location, limit in (("samples", samples, count), ("reference", reference, None)):
        source = open_images(location, size)
        conditions = _conditions(source, location)
        sides[name] = _measure(_part(source, limit), extract, diversity, batch_size, workers)
        size = sides[name].size  # the reference is cut to the samples' size
        described[name] = {"images": len(sides[name].features), "size": size, **conditions}
    one, other = sides["samples"], sides["reference"]
    if len(one.features) < 2 or len(other.features) < 2:
        raise InputError("a Fréchet distance needs two images or more on either side")
    dimensions = one.features.shape[1]
    if min(len(one.features), len(other.features)) <= dimensions:
        logger.warning("fewer images than the %d feature dimensions: the distance is biased upwards", dimensions)
    distance = frechet_distance(Moments.of(one.features.numpy()), Moments.of(other.features.numpy()))
    result = {"frechet_distance": distance, **described}
    if diversity:
        assert one.pixels is not None and other.pixels is not None
        images, real = one.pixels.float() / 255, other.pixels.float() / 255
        ours, theirs = within_class_variance(images, one.labels), within_class_variance(real, other.labels)
        result["within_class_variance"] = {"samples": ours, "reference": theirs, "ratio": ours / theirs}
        nearest = nearest_distances(images, real)
        quantiles = torch.tensor([0.05, 0.5, 0.95])
        result["nearest_reference_distance"] = dict(
            zip(("5%", "median", "95%"), nearest.quantile(quantiles).tolist(), strict=True)
        )
    return result


def _features(name: str) -> tuple[Features, dict[str, Any], int | None]:
    """The extractor, what the result says of it, and the size that it wants images at (None: as they are)."""
    device = processes().device
    if name == INCEPTION:
        return inception_features(device), {"features": "inception-v3, clean-fid", "resize": "clean"}, None
    path = Path(name)
    if path.suffix != ".safetensors":
        raise UsageError(f"--features {name}: give `{INCEPTION}` or an RAE file")
    rae = weights.load_rae(path).to(device)
    described = {
        "features": "RAE encoder, mean of the standardised patch tokens",
        "features_digest": open_artifact(path).digest,
        "resize": f"bicubic to {rae.config.image_size} where needed",
    }
    return rae_features(rae), described, rae.config.image_size


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


def _measure(source: Rows, extract: Features, keep_pixels: bool, batch_size: int, workers: int) -> _Measured:
    features, labels, pixels = [], [], []
    for batch in batches_of(source, batch_size, workers):
        images = batch.columns["image"]
        features.append(extract(images))
        labels.append(batch.columns["label"])
        if keep_pixels:
            pixels.append(images)
    if not features:
        raise InputError("there are no images to measure")
    return _Measured(
        torch.cat(features), torch.cat(labels), images.shape[-1], torch.cat(pixels) if keep_pixels else None
    )


def _conditions(source: ImageSource, location: str) -> dict[str, Any]:
    """Where the images come from, and how they were drawn where they say it."""
    result = {"location": location, "digest": source.artifact.digest}
    folder = Path(location)
    if folder.is_dir() and (folder / INDEX_NAME).exists():
        config = open_artifact(folder).config
        names = ("model", "nfe", "solver", "labels", "seed", "precision", "guidance")
        result |= {name: config[name] for name in names if name in config}
        result["digest"] = file_digest(folder / INDEX_NAME)
    return result
