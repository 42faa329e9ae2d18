"""Rows of tars on this machine, found by their byte ranges: one at a time, or a batch read straight into its place."""

import io
import math
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfkit.data.codecs import STORED, array_header
from mfkit.data.skip import Damage
from mfkit.data.tar import BLOCK, DAMAGED, LARGEST, content, members, split_name
from mfkit.errors import MALFORMED, InputError, reason

Decode = Callable[[dict[str, Any]], dict[str, Any]]
"""A raw sample (``__key__``, ``__url__``, bytes by suffix) to the tensors and numbers of a row."""

_KEPT_OPEN = 512
"""Files that stay open for the next read; a process is often allowed 1,024."""
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
"""Fields of a tar header."""


class TarRows:
    """Rows by number. Row i are the bytes begin[i]:end[i] of the tar files[file[i]]."""

    def __init__(self, files: Sequence[Path], places: np.ndarray, decode: Decode, damage: Damage) -> None:
        """:param places: (N, 3) int64: file, begin, end."""
        self._files, self._places = list(files), places
        self.damage = damage
        self._descriptors: dict[int, int] = {}
        self.decode = decode
        self.classes: int | None = None
        """Labels from here on are left to ``decode``, to be refused."""

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, begin, end = (int(value) for value in self._places[index])
        return self.decode(raw_sample(self._bytes(file, begin, end), self._files[file]))

    @cached_property
    def gathers(self) -> bool:
        """Whether rows are arrays, which :meth:`gather` reads without a copy."""
        return self._shape is not None

    def gather(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The columns of these rows, each (B, ...): arrays in the number format they are stored in, and labels.

        Rows that are laid out as the first one are read into the batch; others go through ``decode``, which also has
        the words for what is wrong with one.
        """
        shape = self._shape
        assert shape is not None
        pinned = torch.cuda.is_available()
        arrays = {
            name: torch.empty(len(indices), *part.shape, dtype=part.dtype, pin_memory=pinned)
            for name, part in shape.arrays.items()
        }
        views = {name: [memoryview(row.numpy()).cast("B") for row in array] for name, array in arrays.items()}
        labels = []
        for place, index in enumerate(indices):
            file, begin, end = (int(value) for value in self._places[index])
            label = None
            if end - begin == shape.size:
                with self._opened(file) as descriptor:
                    label = shape.read(descriptor, begin, {name: rows[place] for name, rows in views.items()})
            if label is None or self.classes is None or label >= self.classes:
                row = self[index]
                label = row["label"]
                for name, array in arrays.items():
                    if row[name].shape != array.shape[1:]:
                        found, wanted = tuple(row[name].shape), tuple(array.shape[1:])
                        raise InputError(f"{self._files[file]}: a row's {name} is {found}; the first row's is {wanted}")
                    array[place] = row[name]
            labels.append(label)
        return {**arrays, "label": torch.tensor(labels)}

    @cached_property
    def _shape(self) -> "_Shape | None":
        file, begin, end = (int(value) for value in self._places[0])
        found = _shape(self._bytes(file, begin, end))
        return found if found and {*found.arrays, "label"} == self[0].keys() else None

    def _bytes(self, file: int, begin: int, end: int) -> bytes:
        if end - begin > LARGEST:
            raise InputError(f"{self._files[file]}: a sample of {end - begin} bytes")
        with self._opened(file) as descriptor:
            return os.pread(descriptor, end - begin, begin)

    @contextmanager
    def _opened(self, file: int) -> Iterator[int]:
        try:
            kept = self._descriptors.get(file)
            descriptor = os.open(self._files[file], os.O_RDONLY) if kept is None else kept
            if kept is None and len(self._descriptors) < _KEPT_OPEN:
                kept = self._descriptors.setdefault(file, descriptor)
            try:
                yield descriptor
            finally:
                if kept != descriptor:
                    os.close(descriptor)
        except OSError as error:
            raise InputError(f"{self._files[file]} cannot be read: {error.strerror}") from error

    def close(self) -> None:
        """Closes the files that are open; the next read opens its own again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        if "_descriptors" in self.__dict__:  # not where making this one failed
            self.close()


def raw_sample(data: bytes, path: Path) -> dict[str, Any]:
    """The members of one sample, from its bytes in a tar."""
    sample: dict[str, Any] = {"__url__": str(path)}
    end = 0
    try:
        for member, tar in members(io.BytesIO(data), "r:", part=True):
            key, suffix = split_name(member.name)
            sample |= {"__key__": key, suffix: content(member, tar)}
            end = member.offset_data + _padded(member.size)
        if end != len(data):
            raise tarfile.ReadError(f"no header at byte {end} of the sample")
    except DAMAGED as error:
        name = sample.get("__key__", "an unreadable sample")
        raise InputError(f"{path}: {name}: broken tar member ({reason(error)})") from error
    return sample


@dataclass
class TarIndex:
    """What the headers of a tar say."""

    ranges: list[tuple[int, int]] = field(default_factory=list)
    """(begin, end) of each sample: members of one key that follow one another."""
    described: set[str] = field(default_factory=set)
    """Names in double underscores, which describe the tar itself."""
    error: InputError | None = None
    """Where the tar is damaged; the samples are those before."""


def index_tar(path: Path) -> TarIndex:
    """Reads the headers of a tar alone."""
    index = TarIndex()
    ranges, last = index.ranges, None
    try:
        with path.open("rb") as file:
            for member, _ in members(file, "r:"):
                key = split_name(member.name)[0]
                if member.name.startswith("__"):
                    index.described.add(member.name)
                else:
                    end = member.offset_data + _padded(member.size)
                    ranges.append((ranges.pop()[0] if key == last else member.offset, end))
                last = key
    except DAMAGED as error:
        index.error = InputError(f"{path} is damaged or truncated: {reason(error)}")
        del ranges[-1:]  # members of it may be among what is lost
    return index


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


@dataclass(frozen=True)
class _Array:
    """Where the numbers of an array begin in a sample, and what they are."""

    begin: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Shape:
    """How a sample is laid out: which bytes are numbers, and what the others, its frame, must be."""

    size: int
    arrays: dict[str, _Array]
    """In the order of their bytes."""
    frame: np.ndarray
    fixed: np.ndarray
    """Which bytes of the frame are the same in every sample."""
    headers: dict[int, str]
    """Suffixes of the members by the place of their header in the frame."""
    label: int
    """Place of the label's header in the frame."""

    def read(self, file: int, begin: int, parts: dict[str, memoryview]) -> int | None:
        """Reads a sample's arrays into these parts of a batch: its label, or None where it is laid out otherwise."""
        frame = bytearray(len(self.frame))
        buffers, place, taken = [], 0, 0
        for name, array in self.arrays.items():
            length = array.begin - place
            buffers += [memoryview(frame)[taken : taken + length], parts[name]]
            place, taken = array.begin + array.size, taken + length
        if os.preadv(file, [*buffers, memoryview(frame)[taken:]], begin) < self.size:
            return None
        if not np.array_equal(np.frombuffer(frame, np.uint8)[self.fixed], self.frame[self.fixed]):
            return None
        for place, suffix in self.headers.items():
            header = frame[place : place + BLOCK]
            name = header[_NAME].rstrip(b"\0").decode("ascii", "replace")
            if split_name(name)[1] != suffix or _checksum(header) != header[_CHECKSUM][:6]:
                return None
        header, content = frame[self.label : self.label + BLOCK], frame[self.label + BLOCK :]
        try:
            label = int(content[: int(header[_SIZE].rstrip(b"\0 "), 8)])
        except ValueError:
            return None
        return label if label >= 0 else None


def _checksum(header: bytes | bytearray) -> bytes:
    return b"%06o" % (sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" "))


def _shape(data: bytes) -> _Shape | None:
    """The layout of a sample of arrays (.npy, float16 or float32) and a label; None for any other sample."""
    arrays: dict[str, _Array] = {}
    headers: dict[int, str] = {}
    try:
        found = [member for member, _ in members(io.BytesIO(data), "r:", part=True)]
    except DAMAGED:
        return None  # said when the row is decoded
    for member in found:
        suffix = split_name(member.name)[1]
        if member.offset + BLOCK != member.offset_data:
            return None
        headers[member.offset] = suffix
        if suffix != "cls":
            array = _array(suffix, data, member)
            if array is None:
                return None
            arrays[suffix.removesuffix(".npy")] = array
    if not arrays or "cls" not in headers.values():
        return None
    in_frame, fixed = np.ones(len(data), bool), np.ones(len(data), bool)
    for array in arrays.values():
        in_frame[array.begin : array.begin + array.size] = False
    for place, suffix in headers.items():
        free = [_NAME, _CHECKSUM, *([_SIZE, slice(BLOCK, 2 * BLOCK)] if suffix == "cls" else [])]
        for part in free:
            fixed[place:][part] = False
    places = {int(in_frame[:place].sum()): suffix for place, suffix in headers.items()}
    label = next(place for place, suffix in places.items() if suffix == "cls")
    frame = np.frombuffer(data, np.uint8)[in_frame]
    return _Shape(len(data), arrays, frame, np.flatnonzero(fixed[in_frame]), places, label)


def _array(suffix: str, data: bytes, member: tarfile.TarInfo) -> _Array | None:
    buffer = io.BytesIO(data[member.offset_data : member.offset_data + member.size])
    try:
        shape, fortran, dtype = array_header(buffer)
    except MALFORMED:
        return None
    kind = STORED.get(dtype.name)
    if not suffix.endswith(".npy") or fortran or kind is None or not dtype.isnative:
        return None
    array = _Array(member.offset_data + buffer.tell(), shape, kind)
    return array if buffer.tell() + array.size == member.size else None
