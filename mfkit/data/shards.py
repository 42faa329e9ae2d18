"""What mfkit writes of samples: plain tars for any WebDataset reader, the index beside them, the stream."""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import webdataset as wds

from mfkit.artifacts.artifact import INDEX_NAME, index_digest
from mfkit.artifacts.atomic import whole_file, write_text
from mfkit.artifacts.json_files import fields, read_json
from mfkit.errors import InputError, UsageError
from mfkit.runtime.distributed import processes

STREAM = "-"
"""The location that stands for a tar stream on standard input or output."""

PROGRESS = ".progress"
"""Subfolder of marks in a folder that is still being written."""
STREAM_HEADER, STREAM_END = "__mfkit__/index.json", "__mfkit__/end.json"
"""First and last member of a stream; WebDataset readers skip names in double underscores."""


@dataclass(frozen=True)
class Shard:
    """An entry of the index. Sample i of the shard are the bytes offsets[i]:offsets[i + 1]."""

    name: str
    digest: str
    offsets: list[int]

    @property
    def samples(self) -> int:
        return len(self.offsets) - 1


def write_shard(path: Path, samples: Iterable[dict[str, Any]]) -> Shard:
    """Writes samples (``__key__`` and bytes by suffix) as one tar, the same bytes for the same samples."""
    with whole_file(path) as partial:
        with partial.open("wb") as file:
            offsets = _write(file, samples)
        with partial.open("rb") as file:
            digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(path.name, digest, offsets)


def write_index(
    folder: Path, kind: str, config: Mapping[str, Any], provenance: Mapping[str, Any], shards: list[Shard],
    files: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """The description of a folder of shards, or of pictures; its presence says that the folder is complete.

    :param files: digests of the pictures by their paths in the folder.
    """
    document = {
        "kind": kind,
        "config": dict(config),
        "samples": sum(shard.samples for shard in shards),
        "shards": [{"samples": shard.samples} | asdict(shard) for shard in shards],
        "provenance": dict(provenance),
    }
    if files:
        document["files"] = dict(files)
    write_text(folder / INDEX_NAME, json.dumps(document | {"digest": index_digest(document)}) + "\n")


def write_stream(
    file: IO[bytes], kind: str, config: Mapping[str, Any], provenance: Mapping[str, Any], samples: Iterable[dict]
) -> None:
    """One tar of samples that describes itself first and says at the end that it is whole."""
    header = json.dumps({"kind": kind, "config": dict(config), "provenance": dict(provenance)}).encode()

    def members() -> Iterator[dict[str, Any]]:
        yield _member(STREAM_HEADER, header)
        count = 0
        for sample in samples:
            count += 1
            yield sample
        yield _member(STREAM_END, json.dumps({"samples": count}).encode())

    _write(file, members())
    file.flush()


def write_standard_output(
    kind: str, config: Mapping[str, Any], provenance: Mapping[str, Any], samples: Iterable[dict]
) -> None:
    """:func:`write_stream` to standard output, which has room for one process only."""
    if processes().num_processes > 1:
        raise UsageError("a stream on standard output has one writer; run one process, or write a folder with -o")
    write_stream(sys.stdout.buffer, kind, config, provenance, samples)


def read_index(folder: Path) -> list[Shard]:
    """The shards that a folder's index names, at least one.

    :raises InputError: it is damaged, or names anything but files of this folder.
    """
    index = folder / INDEX_NAME
    shards = []
    for entry in fields(read_json(index), index, shards=list)["shards"]:
        told = fields(entry, index, name=str, digest=str, offsets=list)
        offsets = told["offsets"]
        plain = re.fullmatch(r"[^./\0][^/\0]*", told["name"])
        if not plain or not offsets or not all(type(offset) is int for offset in offsets):
            raise InputError(f"{index} is damaged: it holds no offsets of {told['name']}")
        if offsets[0] < 0 or offsets[-1] >= 1 << 62 or any(b < a for a, b in pairwise(offsets)):
            raise InputError(f"{index} is damaged: the offsets of {told['name']} do not ascend")
        shards.append(Shard(told["name"], told["digest"], offsets))
    if not any(shard.samples for shard in shards):
        raise InputError(f"{index} names no samples")
    return shards


def read_files(folder: Path) -> dict[str, str]:
    """Digests of the pictures that a folder's index names, by their paths in it; empty where it names none."""
    index = folder / INDEX_NAME
    files = fields(read_json(index), index).get("files", {})
    if not isinstance(files, dict):
        raise InputError(f"{index} is damaged: its files are not named")
    return files


def unfinished(folder: Path) -> bool:
    """Whether a command was interrupted while it wrote this folder."""
    return (folder / PROGRESS).exists()


def _member(name: str, data: bytes) -> dict[str, Any]:
    key, _, suffix = name.partition(".")
    return {"__key__": key, suffix: data}


def _write(file: IO[bytes], samples: Iterable[dict[str, Any]]) -> list[int]:
    offsets = [0]
    with wds.TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
            offsets.append(writer.tarstream.offset)
    return offsets
