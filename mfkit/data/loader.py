"""Rows for training: which row stands where depends on the seed alone, not on processes, workers or batch size."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import webdataset as wds

from mfkit.artifacts.artifact import Artifact
from mfkit.data.indexed import TarRows
from mfkit.data.prefetch import ahead, in_order
from mfkit.data.skip import Damage
from mfkit.data.stream import ShardStream
from mfkit.errors import InputError, UsageError

SHUFFLE_SAMPLES, SHUFFLE_BYTES = 2000, 2**30
"""A stream is shuffled among so many of its samples, or among fewer that fit into so many bytes."""
_UNLIKE = 4
"""How many times these bytes its samples may be, where the first was smaller than the others."""


class Numbered(Protocol):
    """Rows by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class RandomAccess(Numbered, Protocol):
    """Rows by number that say where they come from: a shard folder, an image folder, the digits."""

    damage: Damage

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
    """The micro-batches of this process for the steps [first_step, last_step), read ahead.

    Random access gives a new permutation of all rows each epoch; so do shards on this machine that have no index, once
    their headers are read. Any other stream goes through a shuffle buffer, again and again, or once where it cannot be
    read again.

    :param workers: threads that read, decode and collate; a stream has one.
    """
    steps = range(first_step, last_step)
    rows = source.indexed() if isinstance(source, ShardStream) else source
    if rows is None:
        assert isinstance(source, ShardStream)
        return ahead(_streamed(source, layout, steps, seed))
    order = _Order(len(rows), seed)
    batches = (order.of(batch) for step in steps for batch in layout.batches(step))
    return in_order(partial(read, rows, damage=source.damage), batches, workers)


Place = tuple[int, int]
"""(position in an order, row of the source)."""


class _Order:
    """Which row stands at a position: a new permutation of all rows each epoch."""

    def __init__(self, rows: int, seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def of(self, positions: list[int]) -> list[Place]:
        return [(position, self._row(position)) for position in positions]

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, self._rows)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._rows)
        return int(self._order[place])


def read(source: Numbered, places: list[Place], damage: Damage) -> Batch:
    """These rows as a batch; for a row that may be left out, the next one that can be read."""
    try:
        if isinstance(source, TarRows) and source.gathers:
            return Batch([position for position, _ in places], source.gather([row for _, row in places]))
    except InputError:
        if not damage.skips:
            raise
    return collate([(position, _row_from(source, row, damage)) for position, row in places])


def _row_from(source: Numbered, row: int, damage: Damage) -> dict[str, Any]:
    while (found := damage.sample(row, partial(source.__getitem__, row))) is None:
        damage.check(len(source) - damage.count())
        row = (row + 1) % len(source)
    return found


def _streamed(source: ShardStream, layout: Layout, steps: range, seed: int) -> Iterator[Batch]:
    """Every process reads the whole stream and keeps its own rows, so that the order is the same for any number."""
    buffer = source.samples_within(SHUFFLE_BYTES, SHUFFLE_SAMPLES)
    # Trajectories come from random noise, the classes in turn: training need not wait until the buffer has been made.
    first = max(1, buffer // 10) if source.artifact.kind == "trajectories" else buffer
    shuffle = wds.shuffle(buffer, initial=first, rng=random.Random(seed))
    # A broken row must be missing for every process alike, so all of them decode all, where one may be left out.
    decode = source.decode if not source.damage.skips else lambda row: row
    rows = enumerate(_within_memory(shuffle, _endless(source), source.location))
    for step in steps:
        for batch in layout.batches(step):
            found: list[tuple[int, dict[str, Any]]] = []
            for wanted in batch:
                row = next((row for position, row in rows if position == wanted), None)
                if row is None:
                    needed = steps.stop * layout.batch_size
                    raise InputError(
                        f"{source.location} ended in step {step + 1} of {steps.stop}, which need {needed} "
                        "rows; a stream is read once, so make it longer or train fewer steps"
                    )
                found.append((wanted, decode(row)))
            yield collate(found)


def _within_memory(shuffle: Any, samples: Iterator[dict[str, Any]], location: str) -> Iterator[dict[str, Any]]:
    """The shuffled samples; an error before those that wait fill the memory."""
    held = 0

    def size(sample: dict[str, Any]) -> int:
        parts = sample.values()
        return sum(
            part.nbytes if isinstance(part, torch.Tensor) else len(part) for part in parts if hasattr(part, "__len__")
        )

    def entering() -> Iterator[dict[str, Any]]:
        nonlocal held
        for sample in samples:
            held += size(sample)
            if held > _UNLIKE * SHUFFLE_BYTES:
                raise InputError(
                    f"{location}: its samples are much larger than its first one, and fill the memory when they are "
                    "shuffled; give them as tars on this machine, not compressed"
                )
            yield sample

    for sample in shuffle(entering()):
        held -= size(sample)
        yield sample


def _endless(source: ShardStream) -> Iterator[dict[str, Any]]:
    one_pass = source.rows if source.damage.skips else source.raw
    yield from one_pass()
    while source.repeatable:
        yield from one_pass()


def collate(rows: list[tuple[int, dict[str, Any]]]) -> Batch:
    """Numbered rows as one batch, in pinned memory where there is a GPU."""
    try:
        columns = {name: [row[name] for _, row in rows] for name in rows[0][1]}
        stacked = {
            name: torch.stack(values) if isinstance(values[0], torch.Tensor) else torch.tensor(values)
            for name, values in columns.items()
        }
    except RuntimeError as error:
        raise InputError(f"rows {rows[0][0]} to {rows[-1][0]} have different shapes: {error}") from error
    if torch.cuda.is_available():
        stacked = {name: column.pin_memory() for name, column in stacked.items()}
    return Batch([position for position, _ in rows], stacked)
