"""In what order a training reads: samples shuffled anew each epoch, groups of one class, or class indices alone.

What stands at a position of a run depends on the seed alone, so that batch size, processes and interruptions play no
part, and two processes read nothing twice.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mfkit.data.dataset import IndexedTars, MapDataset, read_batch
from mfkit.data.skip import SkipPolicy
from mfkit.data.stream import StreamDataset
from mfkit.errors import InputError, UsageError


class TrainingOrder(Protocol):
    """What stands at each position of a run."""

    skips: SkipPolicy

    def read(self, positions: Sequence[int], seed: int) -> dict[str, torch.Tensor]:
        """Columns (B, ...) of what stands at these positions.

        :raises InputError: it cannot be read.
        """


def shuffle(dataset: MapDataset | StreamDataset) -> TrainingOrder | StreamDataset:
    """The samples of a dataset in random order. A stream is shuffled as it is read."""
    return dataset if isinstance(dataset, StreamDataset) else Shuffled(dataset)


class Shuffled:
    """The samples of a dataset, each epoch in a new permutation of all."""

    def __init__(self, dataset: MapDataset) -> None:
        self._dataset, self.skips = dataset, dataset.skips

    def read(self, positions: Sequence[int], seed: int) -> dict[str, torch.Tensor]:
        return read_batch(self._dataset, [_place_of(position, len(self._dataset), seed) for position in positions])


class ClassGroups:
    """Groups of samples of one class; the classes come in a new permutation each epoch.

    Within a class, groups are cut from a permutation of its samples until fewer than a group are left, then from a new
    one: no sample is twice in a group, nor twice in a round. A class with fewer samples than a group has
    each of them in it equally often, but for the last few.
    """

    def __init__(self, dataset: IndexedTars, class_names: Sequence[str], size: int) -> None:
        """:param size: samples of a group.

        :raises InputError: a class has no samples, or a label cannot be read.
        :raises UsageError: a group is larger than the largest class.
        """
        self._dataset, self.skips, self._size = dataset, dataset.skips, size
        labels = np.asarray(dataset.labels)
        by_class = np.argsort(labels, kind="stable")
        ends = np.searchsorted(labels[by_class], np.arange(-1, len(class_names)), side="right")
        self._members = np.split(by_class, ends)[1:-1]
        counts = [len(members) for members in self._members]
        if 0 in counts:
            label = counts.index(0)
            raise InputError(f"{dataset.artifact.path} has no sample of class {label}, {class_names[label]}")
        if size > (most := max(counts)):
            raise UsageError(
                f"{dataset.artifact.path}: a group of {size} samples is more than its largest class has, {most}; give "
                f"--real {most} or fewer"
            )

    def read(self, positions: Sequence[int], seed: int) -> dict[str, torch.Tensor]:
        """``label`` (G,), and the other columns (G, size, ...) of these groups."""
        drawn = [self.group(position, seed) for position in positions]
        columns = read_batch(self._dataset, np.concatenate([members for _, members in drawn]).tolist(), self._next)
        groups = {name: column.unflatten(0, (len(drawn), self._size)) for name, column in columns.items()}
        return groups | {"label": groups["label"][:, 0].clone()}

    def group(self, position: int, seed: int) -> tuple[int, NDArray[np.int64]]:
        """The class of a group, and the indices of its samples."""
        epoch, place = divmod(position, len(self._members))
        label = int(_permutation(len(self._members), seed, epoch)[place])
        members = self._members[label]
        groups = max(1, len(members) // self._size)
        round_, part = divmod(epoch, groups)
        order = np.random.default_rng([seed, round_, label + 1]).permutation(members)
        return label, np.resize(order[part * self._size :], self._size)

    def _next(self, index: int) -> int:
        """The sample of the same class that stands for one that is skipped."""
        members = next(members for members in self._members if _contains(members, index))
        return int(members[(np.searchsorted(members, index) + 1) % len(members)])


class ClassIndices:
    """Class indices without data, ``label`` (B,), as often as they are in some labels, shuffled anew each epoch."""

    def __init__(self, labels: Sequence[int] | NDArray[np.int64]) -> None:
        """:param labels: (N,); each class once for all alike."""
        self._labels, self.skips = np.asarray(labels), SkipPolicy()

    def read(self, positions: Sequence[int], seed: int) -> dict[str, torch.Tensor]:
        places = [_place_of(position, len(self._labels), seed) for position in positions]
        return {"label": torch.from_numpy(self._labels[places])}


def spread_evenly(labels: Sequence[int], count: int) -> list[int]:
    """Indices of so many samples, ascending: of each class its share, evenly from the first of it to the last.

    :param labels: (N,), N >= ``count``.
    """
    by_class = np.argsort(np.asarray(labels), kind="stable")
    return sorted(by_class[np.arange(count) * len(by_class) // count].tolist())


def _contains(ascending: NDArray[np.int64], value: int) -> bool:
    place = np.searchsorted(ascending, value)
    return bool(place < len(ascending) and ascending[place] == value)


def _place_of(position: int, samples: int, seed: int) -> int:
    """Which sample stands at a position, where each epoch is a new permutation of all of them."""
    epoch, place = divmod(position, samples)
    return int(_permutation(samples, seed, epoch)[place])


@lru_cache(maxsize=1)
def _permutation(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(samples)
