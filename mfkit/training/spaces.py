"""The feature spaces that a training takes distances in: views of latents, or features of their pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor

from mfkit.artifacts.artifact import Artifact, file_digest
from mfkit.autoencoders.files import ROLE, open_autoencoder
from mfkit.data.images import open_images
from mfkit.data.latents import LatentDataset
from mfkit.data.loader import inference_batches
from mfkit.errors import InputError, UsageError
from mfkit.evaluation.features import FeatureExtractor, FeatureRequest, open_features
from mfkit.evaluation.image_set import known_statistics, see_images
from mfkit.evaluation.moments import Moments, read_statistics
from mfkit.flow.objectives.base import OWN_ENCODER, Features, SpaceRequest
from mfkit.flow.views import VIEWS
from mfkit.runtime.distributed import processes

MAX_DIMENSIONS = 4096
"""Of a space: its covariance has as many squared, and its eigenvalues are taken in every step."""


@dataclass(frozen=True)
class Spaces:
    """What a training needs to know of its spaces."""

    features: Features
    described: list[dict[str, Any]]
    """What the student's file says of what it was trained on."""
    inputs: dict[str, Artifact]
    """The references, by role."""


def open_spaces(
    request: SpaceRequest, shape: tuple[int, int, int], data: LatentDataset | None, inputs: Mapping[str, Artifact],
    workers: int,
) -> Spaces:  # fmt: skip
    """The spaces that an objective wants.

    :param shape: of the latents. :param inputs: of the training, among them perhaps the autoencoder.
    :raises UsageError: a space is too large, or has no reference.
    """
    views = [name for name in request.names if name in VIEWS]
    pictures = {name: _extractor(name, request, inputs) for name in request.names if name not in VIEWS}
    decode, size = _decoder(shape, inputs) if pictures else (None, None)

    def extract(x: Tensor) -> dict[str, Tensor]:
        found = {name: VIEWS[name](x) for name in views}
        images = decode(x).float() if decode else x
        return found | {name: one.differentiable(images).unsqueeze(1) for name, one in pictures.items()}

    with torch.no_grad():
        one = extract(torch.zeros(1, *shape, device=processes().device))
    sizes = {name: (found.shape[1], found.shape[2]) for name, found in one.items()}
    for name, (_, dimensions) in sizes.items():
        if dimensions > MAX_DIMENSIONS:
            raise UsageError(f"--space {name} has {dimensions} dimensions here; the most is {MAX_DIMENSIONS}")
    exact = torch.device("cpu") if processes().device.type == "mps" else processes().device
    of_views = cache(partial(_latent_moments, data, views, sizes, exact, workers))
    of_pictures = _references(pictures, request.reference, size, workers)

    def reference(name: str) -> tuple[Tensor, Tensor]:
        if name in VIEWS:
            return of_views()[name]
        moments = of_pictures(name)
        return torch.from_numpy(moments.mean), torch.from_numpy(moments.covariance)

    described = [{"space": name, "features": f"latents, {name}"} for name in views]
    described += [{"space": name, **one.conditions} for name, one in pictures.items()]
    return Spaces(Features(extract, sizes, reference, exact), described, _artifacts(request.reference))


def _extractor(name: str, request: SpaceRequest, inputs: Mapping[str, Artifact]) -> FeatureExtractor:
    if name == "pixels":
        raise UsageError("--space pixels: nothing is trained there, so that fid has a space to judge by")
    inception, weights = request.inception, request.features_weights
    of_timm = name not in (OWN_ENCODER, "inception") and not name.endswith(".safetensors")
    return open_features(
        FeatureRequest(
            features=str(_autoencoder_path(inputs)) if name == OWN_ENCODER else name,
            resize=request.resize if name == "inception" else "clean",
            inception=Path(inception) if inception and name == "inception" else None,
            features_weights=weights if of_timm else None,
        )
    )


def _autoencoder_path(inputs: Mapping[str, Artifact]) -> Path:
    if ROLE not in inputs or not inputs[ROLE].path.exists():
        raise InputError("spaces of the picture need the RAE, which is not where the latents say it is")
    return inputs[ROLE].path


def _decoder(shape: tuple[int, ...], inputs: Mapping[str, Artifact]) -> tuple[Callable[[Tensor], Tensor], int]:
    """The frozen decoder, with a gradient by the latents, and the side of its pictures."""
    network = open_autoencoder(_autoencoder_path(inputs)).load(latent_shape=shape)
    network.requires_grad_(False).to(processes().device)
    return network.decode, network.config.image_size


def _references(
    extractors: Mapping[str, FeatureExtractor], references: Sequence[str], size: int | None, workers: int
) -> Callable[[str], Moments]:
    """What tells the moments of the real images in a space: by statistics that are of it, else by the images.

    Images are read once for all spaces that see them at one size.

    :param size: of the decoder's pictures.
    """
    known = {name: _reference(name, one, references) for name, one in extractors.items()}

    @cache
    def seen(location: str, side: int | None) -> dict[str, Moments]:
        of = {
            name: one for name, one in extractors.items() if (known[name], one.image_size or size) == (location, side)
        }
        views = [(one, [("features", "moments")]) for one in of.values()]
        sets = see_images(location, views, side, batch_size=250, workers=workers)
        return {name: found.moments("features") for name, found in zip(of, sets, strict=True)}

    def moments(name: str) -> Moments:
        found = known[name]
        return found if isinstance(found, Moments) else seen(found, extractors[name].image_size or size)[name]

    return moments


def _reference(space: str, extractor: FeatureExtractor, references: Sequence[str]) -> Moments | str:
    """The statistics among the references that are of a space, else where the images are."""
    images, reasons = [], []
    for location in references:
        if location.endswith(".npz") and not Path(location).exists():
            raise InputError(f"{location} does not exist")
        try:
            found = read_statistics(Path(location)) if location.endswith(".npz") else None
            known = known_statistics(location, found, extractor) if found else None
        except InputError as error:
            reasons.append(str(error))
            continue
        if known:
            return known.moments("features")
        images.append(location)
    if not images:
        why = f" ({'; '.join(reasons)})" if reasons else ""
        raise UsageError(f"--space {space} needs --reference: real images, or `fid --save-stats` of them{why}")
    if len(images) > 1:
        raise UsageError(f"--reference {images[1]}: one set of real images is enough, {images[0]}")
    return images[0]


def _artifacts(references: Sequence[str]) -> dict[str, Artifact]:
    found = {}
    for number, location in enumerate(references):
        path = Path(location)
        if path.suffix == ".npz":
            artifact = Artifact(path, "statistics", content_digest=file_digest(path))
        else:
            artifact = open_images(location, None).artifact
        found[f"reference-{number + 1}" if number else "reference"] = artifact
    return found


@torch.no_grad()
def _latent_moments(
    data: LatentDataset | None, views: Sequence[str], sizes: Mapping[str, tuple[int, int]], exact: torch.device,
    workers: int,
) -> dict[str, tuple[Tensor, Tensor]]:  # fmt: skip
    """Mean and covariance of the real latents in some views, in one pass that the processes share."""
    assert data is not None
    state = processes()
    sums = {view: torch.zeros(sizes[view][1] + 1, sizes[view][1], dtype=torch.float64, device=exact) for view in views}
    count = torch.zeros((), dtype=torch.float64, device=exact)
    batches = inference_batches(
        data.dataset, 256, 256, lambda part: part % state.num_processes == state.process_index, workers
    )
    for _, batch in batches:
        latents = batch.columns["latent"].to(state.device).float()
        count += len(latents)
        for view, total in sums.items():
            vectors = VIEWS[view](latents).flatten(0, 1).to(exact).double()
            total[0] += vectors.sum(0)
            total[1:] += vectors.T @ vectors
    found = {}
    samples = reduce(count, "sum")
    for view, total in sums.items():
        rows = samples * sizes[view][0]
        whole = reduce(total, "sum")
        mean = whole[0] / rows
        found[view] = mean, (whole[1:] - rows * torch.outer(mean, mean)) / (rows - 1)
        if not whole.isfinite().all():
            raise InputError(f"{data.artifact.path} holds numbers that are not finite")
    return found
