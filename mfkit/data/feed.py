"""Rows for training: which row stands where depends on the seed alone, not on processes, workers or batch size."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from mfkit.data.shards import ShardStream
from mfkit.errors import InputError, MfkitError, UsageError
from mfkit.files.artifact import Artifact

SHUFFLE_BUFFER = 2000
"""Rows among which a stream is shuffled."""


class Numbered(Protocol):
    """Rows by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class RandomAccess(Numbered, Protocol):
    """Rows by number that say where they come from: a shard folder, an image folder, the digits."""

    @property
    def artifact(self) -> Artifact: ...


Source = RandomAccess | ShardStream


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass, with their positions in the run's order: position p belongs to step p // batch size."""

    positions: list[int]
    columns: dict[str, torch.Tensor]
    """Each (B, ...): what the source's rows hold, stacked."""


@dataclass(frozen=True)
class Layout:
    """How the rows of a step are shared: process ``rank`` of ``processes`` takes a contiguous part in micro-batches."""

    batch_size: int
    micro_batch: int
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % (self.processes * self.micro_batch):
            raise UsageError(
                f"a batch of {self.batch_size} rows does not divide among {self.processes} process(es) "
                f"in micro-batches of {self.micro_batch}"
            )

    @property
    def accumulation(self) -> int:
        """Forward passes per optimiser step."""
        return self.batch_size // (self.processes * self.micro_batch)

    def batches(self, step: int) -> Iterator[list[int]]:
        """Positions of this process's micro-batches in a step."""
        begin = step * self.batch_size + self.rank * self.batch_size // self.processes
        for _ in range(self.accumulation):
            yield list(range(begin, begin + self.micro_batch))
            begin += self.micro_batch


def feed(
    source: Source, layout: Layout, *, first_step: int, last_step: int, seed: int, workers: int
) -> Iterator[Batch]:
    """The micro-batches of this process for the steps [first_step, last_step).

    Random access gives a new permutation of all rows each epoch. A stream goes through a shuffle buffer of
    ``SHUFFLE_BUFFER`` rows, again and again, or once where it cannot be read again.
    """
    if isinstance(source, ShardStream):
        rows: Dataset = _Streamed(source, layout, first_step, last_step, seed)
        loader = DataLoader(rows, batch_size=layout.micro_batch, collate_fn=collate)
    else:
        positions = _Positions(layout, range(first_step, last_step))
        loader = DataLoader(
            _Shuffled(source, seed),
            batch_sampler=positions,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
        )
    return raising(loader)


class _Positions(Sampler[list[int]]):
    def __init__(self, layout: Layout, steps: range) -> None:
        self._layout, self._steps = layout, steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            yield from self._layout.batches(step)

    def __len__(self) -> int:
        return len(self._steps) * self._layout.accumulation


class _Shuffled(Dataset):
    def __init__(self, source: RandomAccess, seed: int) -> None:
        self._source, self._seed = source, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> tuple[int, dict[str, Any] | MfkitError]:
        epoch, place = divmod(position, len(self._source))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._source))
        return position, row_or_error(self._source, int(self._order[place]))


class _Streamed(IterableDataset):
    """Every process reads the whole stream and keeps its own rows, so that the order is the same for any number."""

    def __init__(self, source: ShardStream, layout: Layout, first_step: int, last_step: int, seed: int) -> None:
        self._source, self._layout, self._seed = source, layout, seed
        self._steps = range(first_step, last_step)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        shuffle = wds.shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, rng=random.Random(self._seed))
        rows = enumerate(shuffle(iter(self._endless())))
        for step in self._steps:
            for wanted in (position for batch in self._layout.batches(step) for position in batch):
                row = next((row for position, row in rows if position == wanted), None)
                if row is None:
                    needed = self._steps.stop * self._layout.batch_size
                    raise InputError(
                        f"{self._source.location} ended in step {step + 1} of {self._steps.stop}, which need {needed} "
                        "rows; a stream is read once, so make it longer or train fewer steps"
                    )
                yield wanted, self._source.decode(row)

    def _endless(self) -> Iterator[dict[str, Any]]:
        yield from self._source.raw()
        while self._source.repeatable:
            yield from self._source.raw()


def row_or_error(source: Numbered, index: int) -> dict[str, Any] | MfkitError:
    """A row, or its error as a value: a loader process would wrap a raised one into a page of text."""
    try:
        return source[index]
    except MfkitError as error:
        return error


def raising(batches: Iterable[Batch | MfkitError]) -> Iterator[Batch]:
    """Batches, until one of them is an error."""
    for batch in batches:
        if isinstance(batch, MfkitError):
            raise batch
        yield batch


def collate(rows: list[tuple[int, dict[str, Any] | MfkitError]]) -> Batch | MfkitError:
    """Numbered rows as one batch, or the first error among them."""
    good = [(position, row) for position, row in rows if not isinstance(row, MfkitError)]
    if len(good) < len(rows):
        return next(row for _, row in rows if isinstance(row, MfkitError))
    try:
        return _stack(good)
    except RuntimeError as error:
        return InputError(f"rows {rows[0][0]} to {rows[-1][0]} have different shapes: {error}")


def _stack(rows: list[tuple[int, dict[str, Any]]]) -> Batch:
    names = rows[0][1].keys()
    columns = {name: [row[name] for _, row in rows] for name in names}
    return Batch(
        [position for position, _ in rows],
        {
            name: torch.stack(values) if isinstance(values[0], torch.Tensor) else torch.tensor(values)
            for name, values in columns.items()
        },
    )
