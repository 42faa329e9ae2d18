"""Batches of a dataset: for training, in an order that depends on the seed alone; for inference, every sample once."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any

import torch

from mfkit.data.codecs import Sample
from mfkit.data.dataset import MapDataset, collate, read_batch
from mfkit.data.order import TrainingOrder
from mfkit.data.prefetch import ordered_map, prefetch
from mfkit.data.stream import StreamDataset
from mfkit.errors import InputError, UsageError
from mfkit.runtime.distributed import processes

SHUFFLE_SAMPLES, SHUFFLE_BYTES = 2000, 2**30
"""A stream is shuffled among so many of its samples, or among fewer that fit into so many bytes."""

Dataset = MapDataset | StreamDataset


@dataclass(frozen=True)
class Batch:
    """Samples of one forward pass."""

    positions: list[int]
    """In the run's order, where position p belongs to step p // batch size; in inference, the samples' indices."""
    columns: dict[str, torch.Tensor]
    """Each (B, ...): what the dataset's samples hold, stacked."""


@dataclass(frozen=True)
class BatchSharding:
    """How the samples of a step are shared: process ``rank`` takes a contiguous part, in micro-batches."""

    batch_size: int
    micro_batch: int
    rank: int = 0
    num_processes: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % (self.num_processes * self.micro_batch):
            raise UsageError(
                f"a batch of {self.batch_size} samples does not divide among {self.num_processes} process(es) "
                f"in micro-batches of {self.micro_batch}"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimiser step."""
        return self.batch_size // (self.num_processes * self.micro_batch)

    def positions(self, step: int) -> Iterator[list[int]]:
        """Of this process's micro-batches in a step."""
        begin = step * self.batch_size + self.rank * self.batch_size // self.num_processes
        for _ in range(self.accumulation):
            yield list(range(begin, begin + self.micro_batch))
            begin += self.micro_batch


def train_batches(
    source: TrainingOrder | StreamDataset, sharding: BatchSharding, *, first_step: int, last_step: int, seed: int,
    workers: int,
) -> Iterator[Batch]:  # fmt: skip
    """The micro-batches of this process for the steps [first_step, last_step), read ahead.

    A stream goes through a shuffle buffer, again and again, or once where it cannot be read again.

    :param workers: threads that read, decode and collate; a stream has one.
    """
    steps = range(first_step, last_step)
    if isinstance(source, StreamDataset):
        return prefetch(_streamed(source, sharding, steps, seed))
    batches = (positions for step in steps for positions in sharding.positions(step))
    return ordered_map(lambda positions: Batch(positions, source.read(positions, seed)), batches, workers)


def _streamed(stream: StreamDataset, sharding: BatchSharding, steps: range, seed: int) -> Iterator[Batch]:
    """Every process reads the whole stream and keeps its own samples, so that the order is the same for any number."""
    # Trajectories come from random noise, the classes in turn: training need not wait until the buffer has been filled.
    first = 0.1 if stream.artifact.kind == "trajectories" else 1.0
    # An unreadable sample must be missing for every process alike, so all of them decode all, where one may be skipped.
    decode = stream.decode if not stream.skips.skips else lambda sample: sample
    samples = enumerate(shuffled(_endless(stream), random.Random(seed), SHUFFLE_SAMPLES, SHUFFLE_BYTES, first=first))
    for step in steps:
        for positions in sharding.positions(step):
            batch: list[dict[str, Any]] = []
            for wanted in positions:
                sample = next((sample for position, sample in samples if position == wanted), None)
                if sample is None:
                    needed = steps.stop * sharding.batch_size
                    raise InputError(
                        f"{stream.location} ended in step {step + 1} of {steps.stop}, which need {needed} "
                        "samples; a stream is read once, so make it longer or train fewer steps"
                    )
                batch.append(decode(sample))
            yield Batch(positions, collate(batch))


def _endless(stream: StreamDataset) -> Iterator[dict[str, Any]]:
    one_pass = stream.samples if stream.skips.skips else stream.raw_samples
    yield from one_pass()
    while stream.repeatable:
        yield from one_pass()


def shuffled(
    samples: Iterable[dict[str, Any]], chance: random.Random, max_samples: int, max_bytes: int, *, first: float = 1.0
) -> Iterator[dict[str, Any]]:
    """The samples in random order, as far as a buffer of bounded number and size allows.

    :param first: share of the buffer that is filled before the first sample is given; it grows with each that is.
    """
    samples = iter(samples)
    buffer: list[dict[str, Any]] = []
    held, share = 0, first
    while True:
        while not buffer or (len(buffer) < share * max_samples and held < share * max_bytes):
            sample = next(samples, None)
            if sample is None:
                break
            buffer.append(sample)
            held += _nbytes(sample)
        if not buffer:
            return
        place = chance.randrange(len(buffer))
        buffer[place], buffer[-1] = buffer[-1], buffer[place]
        held -= _nbytes(buffer[-1])
        yield buffer.pop()
        share = min(1.0, share + 1 / max_samples)


def _nbytes(sample: dict[str, Any]) -> int:
    return sum(
        value.nbytes if isinstance(value, torch.Tensor) else len(value)
        for value in sample.values()
        if isinstance(value, torch.Tensor | bytes | str)
    )


def inference_batches(
    dataset: Dataset, shard_size: int, batch_size: int, is_mine: Callable[[int], bool], workers: int = 0
) -> Iterator[tuple[int, Batch]]:
    """(shard, batch) for the shards of this process; shard k are the samples from k * shard_size. No batch spans two.

    Samples that are skipped are missing from their batches. Of a stream, those of other shards are read and dropped.

    :param workers: threads that read and decode.
    """
    if isinstance(dataset, StreamDataset):
        numbered = _stream_batches(dataset, shard_size, batch_size, is_mine)
        made = ordered_map(lambda part: (part[0], _present(part[1], dataset)), numbered, workers)
    else:
        parts = (part for part in shard_ranges(len(dataset), shard_size, batch_size) if is_mine(part[0]))

        def read(part: tuple[int, range]) -> tuple[int, Batch | None]:
            shard, indices = part
            if not dataset.skips.skips:
                return shard, Batch(list(indices), read_batch(dataset, indices))
            batch = _present(((index, partial(dataset.__getitem__, index)) for index in indices), dataset)
            dataset.skips.check(len(dataset) - dataset.skips.count())
            return shard, batch

        made = ordered_map(read, parts, workers)
    yield from ((shard, batch) for shard, batch in made if batch is not None)


def batch_count(dataset: Dataset, shard_size: int, batch_size: int, is_mine: Callable[[int], bool]) -> int | None:
    """How many :func:`inference_batches` gives, where none is skipped whole; None of a stream."""
    if isinstance(dataset, StreamDataset):
        return None
    return sum(is_mine(shard) for shard, _ in shard_ranges(len(dataset), shard_size, batch_size))


def all_batches(dataset: Dataset, batch_size: int, workers: int = 0) -> Iterator[Batch]:
    """All samples in batches of ``batch_size``, the last one smaller."""
    for _, batch in inference_batches(dataset, batch_size, batch_size, lambda shard: True, workers):
        yield batch


def shared_batches(dataset: Dataset, batch_size: int, workers: int = 0) -> Iterator[Batch]:
    """Every batch once, in one of the processes."""
    world = processes()
    numbered = inference_batches(
        dataset, batch_size, batch_size, lambda number: number % world.num_processes == world.process_index, workers
    )
    return (batch for _, batch in numbered)


def _present(readers: Iterable[tuple[int, Callable[[], Sample]]], dataset: Dataset) -> Batch | None:
    """The samples that can be read, as a batch; None where there are none."""
    found = [(index, sample) for index, read in readers if (sample := dataset.skips.read(index, read)) is not None]
    return Batch([index for index, _ in found], collate([sample for _, sample in found])) if found else None


def _stream_batches(
    stream: StreamDataset, shard_size: int, batch_size: int, is_mine: Callable[[int], bool]
) -> Iterator[tuple[int, list[tuple[int, Callable[[], Sample]]]]]:
    """(shard, its samples by their indices, each to be decoded by whoever calls it)."""
    samples = enumerate(stream.raw_samples())
    for shard, of_shard in groupby(samples, key=lambda item: item[0] // shard_size):
        while is_mine(shard) and (batch := list(islice(of_shard, batch_size))):
            yield shard, [(index, partial(stream.decode, raw)) for index, raw in batch]


def shard_ranges(samples: int, shard_size: int, batch_size: int) -> Iterator[tuple[int, range]]:
    """(shard, indices) for batches of at most ``batch_size`` samples that do not span two shards."""
    for begin in range(0, samples, shard_size):
        end = min(begin + shard_size, samples)
        for first in range(begin, end, batch_size):
            yield begin // shard_size, range(first, min(first + batch_size, end))
