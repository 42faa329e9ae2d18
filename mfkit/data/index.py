"""Where each sample of indexed tars stands: file, byte range, label, and where the numbers of its arrays begin.

Of shards that mfkit wrote it is kept in ``index.json``; of other tars on this machine it is made by a scan of their
headers. ``README.md`` beside this file describes the format.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mfkit.artifacts.artifact import INDEX_NAME, Provenance, describe, index_digest
from mfkit.artifacts.atomic import write_text
from mfkit.artifacts.json_files import parse, parse_json, parse_known, read_json
from mfkit.data.codecs import DTYPES, MAX_CLASSES, array_header, label_member
from mfkit.data.tar import BLOCK, TAR_ERRORS, content, members, split_name
from mfkit.errors import DECODING_ERRORS, InputError, reason

STREAM_HEADER, STREAM_END = "__mfkit__/index.json", "__mfkit__/end.json"
"""First and last member of a stream; WebDataset readers skip names in double underscores."""


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """An array of a sample, and where it stands there."""

    dtype: str
    shape: list[int]
    offset: int
    """Bytes from the sample's beginning to the array's first number."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES or self.offset < 0 or not all(0 < side < 1 << 31 for side in self.shape):
            raise ValueError(f"an array of {self.dtype} {self.shape} at {self.offset}")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def empty(self, count: int, *, pin_memory: bool) -> torch.Tensor:
        """(count, *shape), for as many samples."""
        return torch.empty(count, *self.shape, dtype=DTYPES[self.dtype], pin_memory=pin_memory)


@dataclass(frozen=True)
class SampleIndex:
    """All samples of some tars, in their order."""

    files: list[Path]
    file: NDArray[np.int32]
    """(N,), which of the files a sample is in."""
    begin: NDArray[np.int64]
    """(N,), its first byte there."""
    end: NDArray[np.int64]
    label: NDArray[np.int64]
    """(N,), class indices; -1 where the sample must be decoded to tell."""
    layouts: dict[str, StoredArray] = field(default_factory=dict)
    """The arrays that samples have, by name, as the first sample has them."""
    offsets: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """(N,) each, the byte of its file at which an array's numbers begin; -1 where the sample must be decoded."""

    def __len__(self) -> int:
        return len(self.file)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar of an index. Sample i are the bytes offsets[i]:offsets[i + 1]."""

    name: str
    digest: str
    samples: int
    offsets: list[int]
    labels: list[int]

    def __post_init__(self) -> None:
        offsets, labels = self.offsets, self.labels
        if "/" in self.name or self.name.startswith(".") or not self.name or "\0" in self.name:
            raise ValueError(f"{self.name!r} is not the name of a file in its folder")
        ascending = all(begin <= end for begin, end in pairwise(offsets))
        if len(offsets) != self.samples + 1 or not ascending or not 0 <= offsets[0] <= offsets[-1] < 1 << 62:
            raise ValueError(f"the offsets of {self.name} do not ascend")
        if len(labels) != self.samples or not all(0 <= label < MAX_CLASSES for label in labels):
            raise ValueError(f"the labels of {self.name} are not class indices")


@dataclass(frozen=True, kw_only=True)
class FolderIndex:
    """What the ``index.json`` of a folder says besides its description."""

    samples: int
    shards: list[Shard] = field(default_factory=list)
    arrays: dict[str, StoredArray] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """Digests of image files by their paths in the folder."""

    def of_folder(self, folder: Path) -> SampleIndex:
        """The index with the tars' paths."""
        offsets = [np.array(shard.offsets, np.int64) for shard in self.shards]
        begin = np.concatenate([one[:-1] for one in offsets])
        return SampleIndex(
            files=[folder / shard.name for shard in self.shards],
            file=np.repeat(np.arange(len(self.shards), dtype=np.int32), [shard.samples for shard in self.shards]),
            begin=begin,
            end=np.concatenate([one[1:] for one in offsets]),
            label=np.concatenate([np.array(shard.labels, np.int64) for shard in self.shards]),
            layouts=self.arrays,
            offsets={name: begin + array.offset for name, array in self.arrays.items()},
        )


def write_index(folder: Path, kind: str, config: Mapping[str, Any], provenance: Provenance, index: FolderIndex) -> None:
    """Writes ``index.json``; its presence says that the folder is complete."""
    document = describe(kind, config, provenance) | asdict(index)
    write_text(folder / INDEX_NAME, json.dumps(document | {"digest": index_digest(document)}) + "\n")


def read_index(folder: Path) -> FolderIndex:
    """The index of a folder.

    :raises InputError: it is damaged, or names anything but files of this folder.
    """
    path = folder / INDEX_NAME
    index = parse_known(FolderIndex, parse(dict, read_json(path), path), path)
    if index.shards and not any(shard.samples for shard in index.shards):
        raise InputError(f"{path} names no samples")
    return index


def index_is_intact(folder: Path) -> bool:
    """Whether the index of a folder says what was written."""
    document = parse(dict, read_json(folder / INDEX_NAME), folder / INDEX_NAME)
    return document.get("digest") == index_digest(document)


@dataclass
class ScannedTar:
    """What the headers of a tar say."""

    samples: list["ScannedSample"] = field(default_factory=list)
    description: Any = None
    """The header of a stream that mfkit wrote, as JSON."""
    is_complete: bool = False
    """The end of such a stream was found."""
    error: InputError | None = None
    """Where the tar is damaged; the samples are those before."""


@dataclass
class ScannedSample:
    """Members of one key that follow one another."""

    key: str
    begin: int
    end: int = 0
    label: int = 0
    """Its class, 0 where it has none; -1 for one that cannot be read."""
    arrays: dict[str, StoredArray] = field(default_factory=dict)
    """Those that can be read in place."""


def scan_tar(path: Path) -> ScannedTar:
    """Reads the headers of a tar on this machine, its labels, and the headers of its arrays."""
    scanned = ScannedTar()
    try:
        with path.open("rb") as file:
            _scan(file, scanned)
    except TAR_ERRORS as error:
        scanned.error = InputError(f"{path} is damaged or truncated: {reason(error)}")
        del scanned.samples[-1:]  # members of it may be among what is lost
    if scanned.description is not None and not scanned.is_complete and scanned.error is None:
        scanned.error = InputError(f"{path} ended early, after {len(scanned.samples)} samples: its writer stopped")
    return scanned


def scan_sample(data: bytes) -> ScannedSample:
    """The same for the bytes of one sample."""
    scanned = ScannedTar()
    _scan(io.BytesIO(data), scanned, part=True)
    return scanned.samples[0]


def _scan(file: IO[bytes], scanned: ScannedTar, *, part: bool = False) -> None:
    samples = scanned.samples
    for member, tar in members(file, "r:", part=part):
        key, suffix = split_name(member.name)
        if member.name == STREAM_HEADER:
            scanned.description = parse_json(content(member, tar), "its description")
        scanned.is_complete = scanned.is_complete or member.name == STREAM_END
        if member.name.startswith("__"):
            continue
        if not samples or samples[-1].key != key:
            samples.append(ScannedSample(key, member.offset))
        sample = samples[-1]
        sample.end = member.offset_data + padded(member.size)
        if suffix == "cls":
            sample.label = -1
            with suppress(InputError):  # said when the sample is decoded
                if member.size <= BLOCK:
                    sample.label = label_member({"__key__": key, "__url__": "", "cls": content(member, tar)})
        elif suffix.endswith(".npy"):
            array = _array(file, sample.begin, member.offset_data, member.size)
            if array is not None:
                sample.arrays[suffix.removesuffix(".npy")] = array


def index_tars(files: Sequence[Path], scanned: Sequence[ScannedTar]) -> SampleIndex:
    """One index of several tars. Arrays laid out as those of the first sample are read in place, others are decoded."""
    pairs = [(number, sample) for number, tar in enumerate(scanned) for sample in tar.samples]
    layouts = pairs[0][1].arrays if pairs else {}

    def offset(sample: ScannedSample, name: str) -> int:
        array, first = sample.arrays.get(name), layouts[name]
        alike = array and (array.dtype, array.shape) == (first.dtype, first.shape)
        return sample.begin + array.offset if array and alike else -1

    return SampleIndex(
        files=list(files),
        file=np.array([number for number, _ in pairs], np.int32),
        begin=np.array([sample.begin for _, sample in pairs], np.int64),
        end=np.array([sample.end for _, sample in pairs], np.int64),
        label=np.array([sample.label for _, sample in pairs], np.int64),
        layouts=layouts,
        offsets={name: np.array([offset(sample, name) for _, sample in pairs], np.int64) for name in layouts},
    )


def _array(file: IO[bytes], sample: int, begin: int, size: int) -> StoredArray | None:
    """An .npy member at ``begin`` of a sample at ``sample``; None where it must be decoded to be read."""
    file.seek(begin)
    header = io.BytesIO(file.read(min(size, 4 * BLOCK)))
    try:
        shape, fortran, dtype = array_header(header)
        array = StoredArray(dtype=dtype.name, shape=list(shape), offset=begin - sample + header.tell())
    except DECODING_ERRORS:
        return None
    return array if dtype.isnative and not fortran and header.tell() + array.nbytes == size else None


def padded(size: int) -> int:
    """The bytes that a member of ``size`` takes in a tar."""
    return -(-size // BLOCK) * BLOCK
