"""What is kept of images while they are seen, batch by batch, in memory that does not grow with them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from mfkit.artifacts.atomic import write_errors
from mfkit.evaluation.moments import Moments, MomentSums


def group_of(indices: Sequence[int], groups: int) -> Tensor:
    """(N,) the group of each image, of about equal sizes.

    It depends on the image's number alone, and shares the images of each class out whether classes come in blocks or in
    turn: the numbers are multiples of the golden ratio, modulo one.
    """
    fractions = [(index * 0x9E3779B97F4A7C15) % 2**64 >> 32 for index in indices]
    return torch.tensor([fraction * groups >> 32 for fraction in fractions])


class Reducer(ABC):
    """Of one output of a feature extractor, or of the pixels."""

    @abstractmethod
    def add(self, indices: Sequence[int], values: Tensor) -> None:
        """A batch: numbers of its images, (B, ...) on the CPU."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """What another process has seen."""

    def share(self) -> None:
        """Merges what all processes have seen, in their order. All of them call it."""
        first, *others = gather_object([self])
        self.__dict__ = dict(first.__dict__)
        for other in others:
            self.merge(other)


class MomentsOf(Reducer):
    """Mean and covariance, of all images and of all but a group of them."""

    def __init__(self, groups: int = 1) -> None:
        self.groups = groups
        self._sums = [MomentSums() for _ in range(groups)]

    def add(self, indices: Sequence[int], values: Tensor) -> None:
        rows, group = values.numpy(), group_of(indices, self.groups).numpy()
        for number, sums in enumerate(self._sums):
            sums.add(rows[group == number])

    def merge(self, other: Self) -> None:
        for own, theirs in zip(self._sums, other._sums, strict=True):
            own.merge(theirs)

    def moments(self, without: int | None = None) -> Moments:
        total = MomentSums()
        for number, sums in enumerate(self._sums):
            if number != without:
                total.merge(sums)
        return total.moments()


class Rows(Reducer):
    """All rows, in the order of the images, in a temporary file, so that memory does not grow with them."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory()  # it goes with this object
        self._file = Path(self._folder.name) / "rows"
        self._indices: list[int] = []
        self._shape: tuple[int, ...] = (0,)
        self._dtype = np.dtype(np.float32)

    def add(self, indices: Sequence[int], values: Tensor) -> None:
        rows = np.ascontiguousarray(values.numpy())
        self._shape, self._dtype = rows.shape[1:], rows.dtype
        with write_errors(self._file), self._file.open("ab") as file:
            file.write(rows.data)
        self._indices += indices

    def merge(self, other: Self) -> None:
        if other._indices:
            self.add(other._indices, other._stored())

    def rows(self) -> Tensor:
        """(N, ...), as they were added."""
        found = self._stored()
        return found if self._indices == sorted(self._indices) else found[torch.tensor(self._indices).argsort()]

    def _stored(self) -> Tensor:
        if not self._indices:
            return torch.zeros(0)
        return torch.from_numpy(np.memmap(self._file, self._dtype, "c", shape=(len(self._indices), *self._shape)))

    def __getstate__(self) -> dict[str, Any]:
        return {"indices": self._indices, "rows": self._stored().clone()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Rows.__init__(self)
        if state["indices"]:
            self.add(state["indices"], state["rows"])


class SplitScores(Reducer):
    """What the Inception Score is made of, of each split of the images."""

    splits = 10

    def __init__(self) -> None:
        self._counts = torch.zeros(self.splits, dtype=torch.float64)
        self._marginals = torch.zeros(0)
        self._negative_entropies = torch.zeros(self.splits, dtype=torch.float64)

    def add(self, indices: Sequence[int], values: Tensor) -> None:
        """:param values: (B, K), probabilities of the classes."""
        probabilities, split = values.double(), group_of(indices, self.splits)
        if not len(self._marginals):
            self._marginals = probabilities.new_zeros(self.splits, probabilities.shape[1])
        self._counts.index_add_(0, split, torch.ones_like(split, dtype=torch.float64))
        self._marginals.index_add_(0, split, probabilities)
        self._negative_entropies.index_add_(0, split, torch.special.xlogy(probabilities, probabilities).sum(1))

    def merge(self, other: Self) -> None:
        if len(other._marginals):
            self._counts = self._counts + other._counts
            self._marginals = self._marginals + other._marginals if len(self._marginals) else other._marginals
            self._negative_entropies = self._negative_entropies + other._negative_entropies

    def scores(self) -> Tensor:
        """exp E KL(p(y | x) || p(y)) of each split that has images."""
        there = self._counts > 0
        counts = self._counts[there]
        marginals = self._marginals[there] / counts[:, None]
        return (self._negative_entropies[there] / counts - torch.special.xlogy(marginals, marginals).sum(1)).exp()


REDUCERS: dict[str, type[Reducer]] = {
    "moments": MomentsOf,
    "rows": Rows,
    "splits": SplitScores,
}
