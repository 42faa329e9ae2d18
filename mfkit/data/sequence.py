"""Every row of a source once, in order: for encoding, statistics and metrics."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count, islice

from mfkit.data.codecs import Sample
from mfkit.data.loader import Batch, Numbered, collate, read
from mfkit.data.prefetch import in_order
from mfkit.data.skip import Damage
from mfkit.data.stream import ShardStream

Rows = Numbered | ShardStream


def batches_of(source: Rows, size: int, workers: int = 0, damage: Damage | None = None) -> Iterator[Batch]:
    """All rows in batches of ``size``, the last one smaller; see :func:`batches_by_shard`."""
    for _, batch in batches_by_shard(source, size, size, lambda shard: True, workers, damage):
        yield batch


def batches_by_shard(
    source: Rows, shard_size: int, batch_size: int, wanted: Callable[[int], bool], workers: int = 0,
    damage: Damage | None = None,
) -> Iterator[tuple[int, Batch]]:  # fmt: skip
    """(shard, batch) for the shards that are wanted; shard k are the rows from k * shard_size. No batch spans two.

    Shards on this machine that have no index are read by random access all the same, once their headers are read. Of
    any other stream, rows of other shards are read and thrown away.

    :param workers: threads that read and decode.
    :param damage: rows that may be left out are missing from their batches.
    """
    damage = damage or Damage()
    rows = source.indexed() if isinstance(source, ShardStream) else source
    if rows is not None:
        parts = ((shard, own) for shard, own in row_ranges(len(rows), shard_size, batch_size) if wanted(shard))

        def whole(part: tuple[int, range]) -> tuple[int, Batch | None]:
            if not damage.skips:
                return part[0], read(rows, [(row, row) for row in part[1]], damage)
            batch = _present(((row, partial(rows.__getitem__, row)) for row in part[1]), damage)
            damage.check(len(rows) - damage.count())
            return part[0], batch

        made = in_order(whole, parts, workers)
    else:
        assert isinstance(source, ShardStream)
        decode = source.decode
        made = in_order(
            lambda part: (
                part[0], _present(((number, partial(decode, sample)) for number, sample in part[1]), damage)
            ),
            _raw_batches(source, shard_size, batch_size, wanted), workers,
        )  # fmt: skip
    for shard, batch in made:
        if batch is not None:
            yield shard, batch


def _present(rows: Iterable[tuple[int, Callable[[], Sample]]], damage: Damage) -> Batch | None:
    """The rows that can be read, as a batch; None where there are none."""
    found = [(number, row) for number, read_row in rows if (row := damage.sample(number, read_row)) is not None]
    return collate(found) if found else None


def _raw_batches(
    source: ShardStream, shard_size: int, batch_size: int, wanted: Callable[[int], bool]
) -> Iterator[tuple[int, list[tuple[int, Sample]]]]:
    samples = enumerate(source.raw())
    for shard in count():
        shard_samples = islice(samples, shard_size)
        empty = True
        while batch := list(islice(shard_samples, batch_size)):
            empty = False
            if wanted(shard):
                yield shard, batch
        if empty:
            return


def row_ranges(rows: int, shard_size: int, batch_size: int) -> Iterator[tuple[int, range]]:
    """(shard, rows) for batches of at most ``batch_size`` rows that do not span two shards."""
    for begin in range(0, rows, shard_size):
        end = min(begin + shard_size, rows)
        for first in range(begin, end, batch_size):
            yield begin // shard_size, range(first, min(first + batch_size, end))
