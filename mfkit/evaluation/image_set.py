"""One of the two sets of images that an evaluation compares: seen image by image, or known by its statistics."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor

from mfkit.artifacts.artifact import INDEX_NAME, file_digest
from mfkit.data.dataset import MapDataset
from mfkit.data.images import ImageDataset, ImageFolder, ImageSample, open_images
from mfkit.data.loader import Dataset, shared_batches
from mfkit.data.order import spread_evenly
from mfkit.data.skip import SkipPolicy
from mfkit.data.stream import StreamDataset
from mfkit.errors import InputError, UsageError
from mfkit.evaluation.features import FeatureExtractor
from mfkit.evaluation.moments import Moments, Statistics
from mfkit.evaluation.reducers import REDUCERS, MomentsOf, Reducer, Rows
from mfkit.runtime.distributed import processes
from mfkit.runtime.progress import progress

logger = logging.getLogger(__name__)

_SAMPLING_CONDITIONS = (
    "model", "model_digest", "nfe", "solver", "time_grid", "time_shift", "times", "labels", "seed", "precision",
    "guidance", "trained_spaces",
)  # fmt: skip


Need = tuple[str, str]
"""Which output of a feature extractor, or the ``pixels``, and what is kept of it, of
:data:`~mfkit.evaluation.reducers.REDUCERS`."""


@dataclass(frozen=True)
class ImageSet:
    """Images as a feature extractor sees them, or statistics alone."""

    conditions: dict[str, Any]
    seen: Mapping[Need, Reducer] = field(default_factory=dict)
    labels: Tensor | None = None
    """(N,), of images whose rows are kept."""
    statistics: Mapping[str, Moments] = field(default_factory=dict)

    def moments(self, output: str, without: int | None = None) -> Moments:
        """Mean and covariance of an output.

        :param without: a group of images to leave out.
        """
        if output in self.statistics:
            return self.statistics[output]
        found = self.seen[output, "moments"]
        assert isinstance(found, MomentsOf)
        return found.moments(without)

    def with_images(self, seen: "ImageSet") -> "ImageSet":
        """Known statistics, and images for what these do not tell."""
        conditions = self.conditions | {"images_seen": seen.conditions["images"]}
        return replace(self, conditions=conditions, seen=seen.seen, labels=seen.labels)

    def has_moments(self, output: str) -> bool:
        return (output, "moments") in self.seen or output in self.statistics

    def rows(self, output: str) -> Tensor:
        """(N, D) float32 of an output; (N, 3, S, S) uint8 of the ``pixels``."""
        found = self.seen[output, "rows"]
        assert isinstance(found, Rows)
        return found.rows()


def see_images(
    location: str, views: Sequence[tuple[FeatureExtractor, Collection[Need]]], size: int | None, *, batch_size: int,
    workers: int, count: int | None = None, groups: int = 1,
) -> list[ImageSet]:  # fmt: skip
    """The images that an IMAGES argument names, as each extractor sees them, in one pass. All processes call it.

    They share the images; each holds in the end what all have seen.

    :param views: extractors, and what is wanted of each.
    :param size: to which images are cut, where it is given. :param workers: threads that read, decode and resize.
    :param count: how many of them, spread evenly; None is all. :param groups: of moments.
    """
    dataset = open_images(location, size)
    conditions = _conditions(dataset, location)
    wanted = [
        {(output, kept): MomentsOf(groups) if kept == "moments" else REDUCERS[kept]() for output, kept in needs}
        for _, needs in views
    ]  # fmt: skip
    labels = Rows()
    sizes: set[int] = set()
    source = _prepared(subset(dataset, count), [extractor.prepare for extractor, _ in views])
    total = None if isinstance(source, StreamDataset) else -(-len(source) // (batch_size * processes().num_processes))
    for batch in progress(shared_batches(source, batch_size, workers), unit="batch", total=total):
        images = batch.columns["image"]
        sizes.add(images.shape[-1])
        labels.add(batch.positions, batch.columns["label"])
        for number, ((extractor, _), reducers) in enumerate(zip(views, wanted, strict=True)):
            outputs = {output for output, _ in reducers} & set(extractor.outputs)
            found = extractor.extract(batch.columns.get(f"prepared {number}", images), outputs) if outputs else {}
            for (output, _), reducer in reducers.items():
                reducer.add(batch.positions, images if output == "pixels" else found[output])
    for reducer in (labels, *(reducer for reducers in wanted for reducer in reducers.values())):
        reducer.share()
    known = labels.rows()
    if len(known) < 2:
        raise InputError(f"{location}: a Fréchet distance needs two images or more on either side")
    conditions |= {"images": len(known), "size": max(gather_object(list(sizes)))}
    of_class = known.long().bincount()
    conditions["images_per_class"] = sorted({int(of_class.min()), int(of_class.max())})
    return [ImageSet(conditions, reducers, known) for reducers in wanted]


def _prepared(dataset: Dataset, prepare: Sequence[Callable[[Tensor], Tensor] | None]) -> Dataset:
    """Samples with what each extractor takes of their image, made by the threads that read."""

    def with_inputs(sample: ImageSample) -> ImageSample:
        inputs = {f"prepared {number}": of(sample["image"]) for number, of in enumerate(prepare) if of is not None}
        return sample | inputs

    if isinstance(dataset, StreamDataset):
        decode = dataset.decode
        dataset.decode = lambda raw: with_inputs(decode(raw))
        return dataset
    return _Selected(dataset, range(len(dataset)), with_inputs)


def known_statistics(location: str, found: Statistics, extractor: FeatureExtractor) -> ImageSet | None:
    """A reference by the statistics in its file; None where these are of other features, and it has the images too."""
    mismatch = _mismatch(found, extractor)
    if mismatch and found.has_images:
        return None
    if mismatch:
        raise InputError(f"{location} holds statistics of other features ({mismatch}), and no images")
    of = {name: value for name, value in asdict(found.of).items() if value is not None}
    conditions = {"location": location, "digest": found.digest, "images": found.of.images, "size": found.of.size}
    return ImageSet(conditions | ({"of": found.conditions.get("of")} if of else {}), statistics=found.moments)


def _mismatch(found: Statistics, extractor: FeatureExtractor) -> str:
    """In what statistics are not of these features, as far as their file says it; empty where they are."""
    if not found.conditions:
        fits = "probabilities" in extractor.outputs and found.of_inception
        return "" if fits else f"{len(found.moments['features'].mean)} dimensions"
    names = ("features", "resize", "features_digest")
    odd = [name for name in names if found.conditions.get(name) != extractor.conditions.get(name)]
    return "; ".join(f"{name}: {found.conditions.get(name)}, not {extractor.conditions.get(name)}" for name in odd)


class _Selected:
    """Some samples of a dataset, changed."""

    def __init__(
        self, dataset: MapDataset, places: Sequence[int], change: Callable[[ImageSample], ImageSample] = dict
    ) -> None:
        self.artifact, self.skips = dataset.artifact, SkipPolicy()
        self._dataset, self._places, self._change = dataset, places, change

    @property
    def labels(self) -> list[int]:
        held = self._dataset.labels
        return [held[place] for place in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> ImageSample:
        return self._change(self._dataset[self._places[index]])


def size_beside(location: str, size: int, own: int | None = None) -> int | None:
    """What images are cut to beside samples of ``size`` pixels; an .npz is taken as it is, or at ``own``."""
    return own if location.endswith(".npz") else size


def subset(dataset: Dataset, count: int | None) -> Dataset:
    """So many of the images, spread evenly; None is all. :raises UsageError: there are fewer, or they are a stream."""
    if count is None:
        return dataset
    if isinstance(dataset, StreamDataset):
        raise UsageError("--count needs a set of a known size, not a stream")
    if count > len(dataset):
        raise UsageError(f"--count {count}: there are only {len(dataset)} images")
    return _Selected(dataset, spread_evenly(dataset.labels, count))


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
