"""Every row of a source once, in order: for encoding, statistics and metrics."""

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from mfkit.data.feed import Batch, Numbered, collate, raising, row_or_error
from mfkit.data.shards import ShardStream
from mfkit.errors import MfkitError

Rows = Numbered | ShardStream


def batches_of(source: Rows, size: int, workers: int = 0) -> Iterator[Batch]:
    """All rows in batches of ``size``, the last one smaller."""
    for _, batch in batches_by_shard(source, size, size, lambda shard: True, workers):
        yield batch


def batches_by_shard(
    source: Rows, shard_size: int, batch_size: int, wanted: Callable[[int], bool], workers: int = 0
) -> Iterator[tuple[int, Batch]]:
    """(shard, batch) for the shards that are wanted; shard k are the rows from k * shard_size. No batch spans two.

    Of a stream, rows of other shards are read and thrown away.
    """
    if isinstance(source, ShardStream):
        samples = source.raw()
        for shard in count():
            raw = list(islice(samples, shard_size))
            if not raw:
                return
            if wanted(shard):
                for begin in range(0, len(raw), batch_size):
                    rows = enumerate(raw[begin : begin + batch_size], shard * shard_size + begin)
                    decoded = collate([(number, source.decode(sample)) for number, sample in rows])
                    yield shard, next(raising([decoded]))
        return
    batches = [rows for shard, rows in row_ranges(len(source), shard_size, batch_size) if wanted(shard)]
    loader = DataLoader(_WithNumbers(source), batch_sampler=_Ranges(batches), num_workers=workers, collate_fn=collate)
    for batch in raising(loader):
        yield batch.positions[0] // shard_size, batch


def row_ranges(rows: int, shard_size: int, batch_size: int) -> Iterator[tuple[int, range]]:
    """(shard, rows) for batches of at most ``batch_size`` rows that do not span two shards."""
    for begin in range(0, rows, shard_size):
        end = min(begin + shard_size, rows)
        for first in range(begin, end, batch_size):
            yield begin // shard_size, range(first, min(first + batch_size, end))


class _WithNumbers(Dataset):
    def __init__(self, source: Numbered) -> None:
        self._source = source

    def __getitem__(self, index: int) -> tuple[int, dict[str, Any] | MfkitError]:
        return index, row_or_error(self._source, index)


class _Ranges(Sampler[list[int]]):
    def __init__(self, batches: list[range]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return (list(rows) for rows in self._batches)

    def __len__(self) -> int:
        return len(self._batches)
