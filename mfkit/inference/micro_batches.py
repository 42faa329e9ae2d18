"""How rows go through frozen networks: each one's numbers are its own, whatever stands beside it and how many work."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from mfkit.config.settings import PrecisionName
from mfkit.data.prefetch import in_order
from mfkit.runtime.precision import autocast, products

T = TypeVar("T")
U = TypeVar("U")

_ENOUGH = 64
"""Tokens of a row that is worth a pass of its own on a CPU."""
_TOGETHER = 800
"""Tokens of a pass of smaller rows."""


class Passes:
    """Passes of a frozen network over numbered rows, on one device and in one precision.

    Matrix libraries sum in another order for another number of rows or of threads. So a pass on a CPU is one thread's
    and always of the same number of rows, each in a place that its number gives; there are as many at a time as there
    are threads. On other devices a pass is a batch as it comes, and float rounding depends on its size.
    """

    def __init__(self, tokens: int, precision: PrecisionName, device: torch.device) -> None:
        """:param tokens: of a row."""
        self._precision, self._device = precision, device
        self._size: int | None = None
        if device.type == "cpu":
            self._size = 1 if tokens >= _ENOUGH else _TOGETHER // tokens

    def whole(self, batch_size: int) -> int:
        """Rows of a batch that is whole passes, at least so many."""
        return batch_size if self._size is None else -(-batch_size // self._size) * self._size

    def split(self, rows: Sequence[int]) -> Iterator[slice]:
        """The parts of a batch, by the ascending numbers of its rows, that are a pass each."""
        size = self._size
        if size is None:
            yield slice(len(rows))
            return
        begin = 0
        for _, part in groupby(rows, key=lambda row: row // size):
            end = begin + len(list(part))
            yield slice(begin, end)
            begin = end

    def run(self, network: Callable[..., Tensor], rows: Sequence[int], *columns: Tensor) -> Tensor:
        """What ``network`` makes of the columns, (B, ...) each, of the rows of one pass: (B, ...)."""
        if self._size is None:
            return network(*columns)
        places = torch.tensor([row % self._size for row in rows])
        filled = [
            column[:1].repeat(self._size, *[1] * (column.ndim - 1)).index_copy_(0, places, column)
            for column in columns
        ]  # fmt: skip
        return network(*filled)[places]

    def each(self, function: Callable[[T], U], passes: Iterable[T]) -> Iterator[U]:
        """``function`` of each pass, in order, without gradients and in the precision."""

        def evaluated(part: T) -> U:
            with autocast(self._precision, self._device), torch.no_grad():
                return function(part)

        threads = torch.get_num_threads() if self._device.type == "cpu" else 1
        with products(self._precision, self._device):
            yield from in_order(evaluated, passes, threads if threads > 1 else 0)
