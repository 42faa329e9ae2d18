"""Datasets by random access: samples by their indices, one at a time or a batch read straight into place."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mfkit.artifacts.artifact import Artifact
from mfkit.data.index import SampleIndex, padded
from mfkit.data.skip import SkipPolicy
from mfkit.data.tar import MAX_BYTES, TAR_ERRORS, content, members, split_name
from mfkit.errors import InputError, reason

Decode = Callable[[dict[str, Any]], dict[str, Any]]
"""A raw sample (``__key__``, ``__url__``, bytes by suffix) to its tensors and numbers."""

MAX_OPEN_FILES = 512
"""That stay open for the next read; a process is often allowed 1,024."""


class MapDataset(Protocol):
    """Samples by index: tars with an index, an image folder, an .npz, the digits."""

    skips: SkipPolicy

    @property
    def artifact(self) -> Artifact: ...

    @property
    def labels(self) -> Sequence[int]:
        """(N,), class indices; -1 for a sample whose class cannot be read, or that is skipped."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """One sample: tensors and numbers by name.

        :raises InputError: it cannot be read.
        """


def read_batch(
    dataset: MapDataset, indices: Sequence[int], following: Callable[[int], int] | None = None
) -> dict[str, Tensor]:
    """Columns (B, ...) of these samples; in the place of one that is skipped stands the next that can be read.

    :param following: gives the next of an index; None goes through the whole dataset.
    """
    if isinstance(dataset, IndexedTars):
        try:
            return dataset.read(indices)
        except InputError:
            if not dataset.skips.skips:
                raise
    following = following or (lambda index: (index + 1) % len(dataset))
    return collate([_readable(dataset, int(index), following) for index in indices])


def _readable(dataset: MapDataset, wanted: int, following: Callable[[int], int]) -> dict[str, Any]:
    index = wanted
    while (sample := dataset.skips.read(index, partial(dataset.__getitem__, index))) is None:
        dataset.skips.check(len(dataset) - dataset.skips.count())
        index = following(index)
        if index == wanted:
            raise InputError(f"{dataset.artifact.path}: no sample that could stand for sample {wanted} can be read")
    return sample


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Samples stacked to columns, in pinned memory where there is a GPU.

    :raises InputError: they are of different shapes.
    """
    columns = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        if not isinstance(first, Tensor):
            columns[name] = torch.tensor(values)
            continue
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise InputError(f"a batch has samples of different shapes: {name} is {' and '.join(map(str, shapes))}")
        columns[name] = torch.stack(values)
    if torch.cuda.is_available():
        columns = {name: column.pin_memory() for name, column in columns.items()}
    return columns


class IndexedTars:
    """The samples of tars on this machine.

    Arrays are read straight into the batch where the index says where their numbers begin; anything else is decoded.
    """

    def __init__(
        self, artifact: Artifact, index: SampleIndex, decode: Decode, skips: SkipPolicy, arrays: Sequence[str] = (),
        fetch: Callable[[Path], None] | None = None,
    ) -> None:  # fmt: skip
        """:param arrays: what samples hold besides the label, where that is arrays alone.
        :param fetch: brings a file here that is still elsewhere; called before each is opened.
        """
        self.artifact, self.index, self.skips = artifact, index, skips
        self.decode, self._fetch = decode, fetch
        self._arrays = list(arrays) if arrays and all(name in index.layouts for name in arrays) else []
        self._descriptors: dict[int, int] = {}

    @cached_property
    def labels(self) -> list[int]:
        """See :class:`MapDataset`; those that the index does not tell are read.

        :raises InputError: one cannot be read, and nothing may be skipped.
        """
        labels = self.index.label.tolist()
        for index in np.flatnonzero(self.index.label < 0).tolist():
            sample = self.skips.read(index, partial(self.__getitem__, index))
            if sample is not None:
                labels[index] = int(sample["label"])
        self.skips.check(len(self) - self.skips.count())
        return labels

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, begin, end = (int(values[index]) for values in (self.index.file, self.index.begin, self.index.end))
        if end - begin > MAX_BYTES:
            raise InputError(f"{self.index.files[file]}: a sample of {end - begin} bytes")
        with self._open(file) as descriptor:
            data = os.pread(descriptor, end - begin, begin)
        return self.decode(parse_sample(data, self.index.files[file]))

    def read(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The columns of these samples, each (B, ...), arrays in the number format they are stored in."""
        if not self._arrays:
            return collate([self[index] for index in indices])
        pinned, table = torch.cuda.is_available(), self.index
        columns = {name: table.layouts[name].empty(len(indices), pin_memory=pinned) for name in self._arrays}
        labels = table.label[np.asarray(indices)].copy()
        in_place = labels >= 0
        for name in self._arrays:
            in_place &= table.offsets[name][np.asarray(indices)] >= 0
        views = {name: [memoryview(row.numpy()).cast("B") for row in column] for name, column in columns.items()}
        for place, index in enumerate(indices):
            if in_place[place]:
                with self._open(int(table.file[index])) as descriptor:
                    for name in self._arrays:
                        self._read_array(descriptor, index, name, views[name][place])
                continue
            sample = self[index]
            labels[place] = sample["label"]
            for name, column in columns.items():
                column[place] = sample[name]
        return {**columns, "label": torch.from_numpy(labels)}

    def _read_array(self, descriptor: int, index: int, name: str, into: memoryview) -> None:
        if os.preadv(descriptor, [into], int(self.index.offsets[name][index])) < len(into):
            raise InputError(f"{self.place(index)}: {name} is cut off: the file is truncated")

    def place(self, index: int) -> str:
        """A sample for an error: its file, and its key where that can be read."""
        return f"{self.index.files[int(self.index.file[index])]}: sample {self.key(index) or index}"

    def key(self, index: int) -> str:
        """The ``__key__`` of a sample; empty where it cannot be read."""
        try:
            with self.index.files[int(self.index.file[index])].open("rb") as file:
                file.seek(int(self.index.begin[index]))
                member, _ = next(members(file, "r:", part=True))
                return split_name(member.name)[0]
        except (StopIteration, *TAR_ERRORS):
            return ""

    @contextmanager
    def _open(self, file: int) -> Iterator[int]:
        try:
            kept = self._descriptors.get(file)
            if kept is None and self._fetch:
                self._fetch(self.index.files[file])
            descriptor = os.open(self.index.files[file], os.O_RDONLY) if kept is None else kept
            if kept is None and len(self._descriptors) < MAX_OPEN_FILES:
                kept = self._descriptors.setdefault(file, descriptor)
            try:
                yield descriptor
            finally:
                if kept != descriptor:
                    os.close(descriptor)
        except OSError as error:
            raise InputError(f"{self.index.files[file]} cannot be read: {error.strerror}") from error

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_descriptors", {}).values():  # none where making this one failed
            os.close(descriptor)


def parse_sample(data: bytes, path: Path) -> dict[str, Any]:
    """The members of one sample, from its bytes in a tar."""
    sample: dict[str, Any] = {"__url__": str(path)}
    end = 0
    try:
        for member, tar in members(io.BytesIO(data), "r:", part=True):
            key, suffix = split_name(member.name)
            sample |= {"__key__": key, suffix: content(member, tar)}
            end = member.offset_data + padded(member.size)
        if end != len(data):
            raise tarfile.ReadError(f"no header at byte {end} of the sample")
    except TAR_ERRORS as error:
        name = sample.get("__key__", "an unreadable sample")
        raise InputError(f"{path}: {name}: broken tar member ({reason(error)})") from error
    return sample
