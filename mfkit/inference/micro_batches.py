"""Micro-batches of frozen networks, so that a result depends on its sample alone, on no batch size or process."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from mfkit.config.settings import PrecisionName
from mfkit.data.loader import Dataset, batch_count, inference_batches, shard_ranges
from mfkit.data.prefetch import ordered_map
from mfkit.runtime.precision import autocast, matmul_precision
from mfkit.runtime.progress import progress

T = TypeVar("T")
U = TypeVar("U")

Part = tuple[int, Sequence[int], dict[str, Tensor]]
"""Of a dataset: shard, numbers of the samples, their columns (B, ...)."""

_LONG = 256
"""Tokens of a sample that is worth a micro-batch of its own on a CPU."""
_TOKENS = 800
"""Tokens of a micro-batch of shorter samples."""


class MicroBatches:
    """Evaluates a frozen network on numbered samples, on one device and in one precision.

    Matrix libraries sum in another order for another number of rows or of threads. So a micro-batch on a CPU is one
    thread's and always of the same size, each sample in a row that its number gives; there are as many at a time as
    there are threads. On other devices it is a batch as it comes, and float rounding depends on its size.
    """

    def __init__(self, tokens: int, precision: PrecisionName, device: torch.device) -> None:
        """:param tokens: of a sample."""
        self._precision, self._device = precision, device
        self._size: int | None = None
        if device.type == "cpu":
            self._size = 1 if tokens >= _LONG else _TOKENS // tokens

    def round_up(self, batch_size: int) -> int:
        """The least batch size from ``batch_size`` on that is whole micro-batches."""
        return batch_size if self._size is None else -(-batch_size // self._size) * self._size

    def split(self, indices: Sequence[int]) -> Iterator[slice]:
        """The parts of a batch, by the ascending numbers of its samples, that are a micro-batch each."""
        size = self._size
        if size is None:
            yield slice(len(indices))
            return
        begin = 0
        for _, part in groupby(indices, key=lambda index: index // size):
            end = begin + len(list(part))
            yield slice(begin, end)
            begin = end

    def evaluate(self, network: Callable[..., Tensor], indices: Sequence[int], *columns: Tensor) -> Tensor:
        """What ``network`` makes of the columns, (B, ...) each, of the samples of one micro-batch: (B, ...)."""
        if self._size is None:
            return network(*columns)
        rows = torch.tensor([index % self._size for index in indices])
        filled = [
            column[:1].repeat(self._size, *[1] * (column.ndim - 1)).index_copy_(0, rows, column) for column in columns
        ]
        return network(*filled)[rows]

    def map_ranges(
        self, function: Callable[[tuple[int, range]], U], samples: int, *, shard_size: int, batch_size: int,
        is_mine: Callable[[int], bool] = lambda shard: True,
    ) -> Iterator[U]:  # fmt: skip
        """``function`` of (shard, numbers of its samples) of each micro-batch, for the shards that are ``is_mine``.

        :param samples: how many there are, in shards of ``shard_size``. :param batch_size: on devices but a CPU.
        """
        ranges = shard_ranges(samples, shard_size, self.round_up(batch_size))
        batches = progress([part for part in ranges if is_mine(part[0])], unit="batch")
        parts = ((shard, indices[part]) for shard, indices in batches for part in self.split(indices))
        return self.map(function, parts)

    def map_samples(
        self, function: Callable[[Part], U], dataset: Dataset, *, shard_size: int, batch_size: int,
        is_mine: Callable[[int], bool], workers: int,
    ) -> Iterator[U]:  # fmt: skip
        """``function`` of each micro-batch of a dataset's samples, for the shards that are ``is_mine``.

        :param workers: threads that read and decode.
        """
        which = (dataset, shard_size, self.round_up(batch_size), is_mine)
        batches = progress(inference_batches(*which, workers), unit="batch", total=batch_count(*which))
        parts = (
            (shard, batch.positions[part], {name: column[part] for name, column in batch.columns.items()})
            for shard, batch in batches
            for part in self.split(batch.positions)
        )
        return self.map(function, parts)

    def map(self, function: Callable[[T], U], micro_batches: Iterable[T]) -> Iterator[U]:
        """``function`` of each, in order, without gradients and in the precision."""

        def evaluated(item: T) -> U:
            with autocast(self._precision, self._device), torch.no_grad():
                return function(item)

        threads = torch.get_num_threads() if self._device.type == "cpu" else 1
        with matmul_precision(self._precision, self._device):
            yield from ordered_map(evaluated, micro_batches, threads if threads > 1 else 0)
