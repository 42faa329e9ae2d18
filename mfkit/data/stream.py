"""What a SHARDS argument opens as: a folder with an index by random access, anything else as a stream in order."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import webdataset as wds
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys

from mfkit.artifacts.artifact import INDEX_NAME, NAMES_DIGEST, Artifact, described, open_artifact
from mfkit.artifacts.json_files import fields, parse_json
from mfkit.config.settings import OnBad
from mfkit.data.indexed import Decode, TarRows, index_tar
from mfkit.data.shards import STREAM, STREAM_END, STREAM_HEADER, read_index, unfinished
from mfkit.data.skip import Damage
from mfkit.data.tar import DAMAGED, LARGEST, content, members, split_name
from mfkit.errors import InputError, UsageError, reason
from mfkit.runtime.distributed import processes

_MOST = 1_000_000
"""Shards that braces may name: all names are kept."""
_LONGEST = 100
"""Characters of a range, and pairs of braces."""
_PEEKED = 20
"""Broken samples at the beginning of a stream that are looked past for the shape of the others."""
_ENOUGH = 1000
"""Samples of a stream after which the share of broken ones is looked at."""


class ShardFolder(TarRows):
    """Random access to the samples of a folder that mfkit wrote."""

    def __init__(self, artifact: Artifact, decode: Decode, damage: Damage) -> None:
        self.artifact = artifact
        shards = read_index(artifact.path)
        for shard in shards if not damage.skips else []:
            path = artifact.path / shard.name
            if not path.is_file():
                raise InputError(f"{path}, named in {INDEX_NAME}, is missing")
            if path.stat().st_size < shard.offsets[-1]:
                raise InputError(f"{path} is truncated: {path.stat().st_size} bytes of {shard.offsets[-1]}")
        places = [_places(number, np.array(shard.offsets, np.int64)) for number, shard in enumerate(shards)]
        super().__init__([artifact.path / shard.name for shard in shards], np.concatenate(places), decode, damage)


def _places(file: int, offsets: np.ndarray) -> np.ndarray:
    return np.stack([np.full(len(offsets) - 1, file), offsets[:-1], offsets[1:]], axis=1)


class ShardStream:
    """Samples in the order of the shards: a folder or glob of foreign tars, a brace range, ``-`` or ``pipe:``."""

    def __init__(self, location: str, decode: Decode, kind: str, damage: Damage) -> None:
        self.location, self.damage = location, damage
        self.repeatable = not location.startswith(("-", "pipe:"))
        self.decode = decode
        self.classes: int | None = None
        self._seen = 0
        self._urls = shard_urls(location)
        self._samples = self._read(self._urls)
        self._first = next(self._samples, None)
        if self._first is None:
            raise InputError(f"{location} holds no samples")
        header = self._first.get("header")
        listed = hashlib.sha256(json.dumps([self._urls, header]).encode()).hexdigest()
        described_as = header or {"kind": kind, "config": {}, "provenance": {}}
        self.artifact = described(Path(location), described_as, location, content_digest=NAMES_DIGEST + listed)
        if header:
            self._first = next(self._samples, {})
        self._passed: list[dict[str, Any]] = []
        """Samples behind the first that were read by looking ahead."""
        if self.artifact.kind != kind:
            raise InputError(f"{location} is a stream of {self.artifact.kind}; expected: {kind}")

    def indexed(self) -> TarRows | None:
        """The same samples by random access; None for a stream, and for shards that are remote or compressed."""
        if not all(_is_plain_tar(url) for url in self._urls):
            return None
        places: list[tuple[int, int, int]] = []
        for file, url in enumerate(self._urls):
            index = index_tar(Path(url))
            if STREAM_HEADER in index.described and STREAM_END not in index.described:
                index.error = InputError(f"{url} ended early, after {len(index.ranges)} samples: its writer stopped")
            self.damage.shard(url, len(index.ranges), index.error)
            places += [(file, begin, end) for begin, end in index.ranges]
        self.damage.check(len(places))
        rows = TarRows([Path(url) for url in self._urls], np.array(places, np.int64), self.decode, self.damage)
        rows.classes = self.classes
        return rows

    def samples_within(self, limit: int, most: int) -> int:
        """How many samples like the first fit into so many bytes: from 1 to ``most``."""
        size = sum(len(value) for value in (self._first or {}).values() if isinstance(value, bytes))
        return min(most, max(1, limit // max(1, size)))

    def peek(self) -> dict[str, Any]:
        """The first sample, decoded, before it is read; where broken ones may be left out, the first that is not."""
        while True:
            sample = self._first if not self._passed else self._passed[-1]
            try:
                return self.decode(sample or {})
            except InputError:
                following = (row for row in self._samples if "header" not in row)
                if not self.damage.skips or len(self._passed) == _PEEKED or (row := next(following, None)) is None:
                    raise
                self._passed.append(row)

    def raw(self) -> Iterator[dict[str, Any]]:
        """One pass over the samples, not decoded; a stream gives a single one."""
        samples = self._samples if self._first is not None else self._read(self._urls)
        first, self._first = self._first, None
        passed, self._passed = self._passed, []
        if first:
            yield first
        yield from passed
        yield from (sample for sample in samples if "header" not in sample)

    def rows(self) -> Iterator[dict[str, Any]]:
        """:meth:`raw`, decoded, without what is broken where that may be left out."""
        for number, sample in enumerate(self.raw()):
            self._seen = max(self._seen, number)  # of all passes, as what they left out
            row = self.damage.sample(number, partial(self.decode, sample))
            if row is not None:
                yield row
            elif self._seen >= _ENOUGH:
                self.damage.check(self._seen, so_far=True)

    def _read(self, urls: list[str]) -> Iterator[dict[str, Any]]:
        total = 0
        for url in urls:
            count, broken = 0, None
            try:
                with open_url(url) as file:
                    for sample in self._read_tar(file, url):
                        yield sample
                        count += "header" not in sample
            except DAMAGED as error:
                failed = url.startswith("pipe:") and isinstance(error, OSError)
                what = "its command failed" if failed else reason(error)
                broken = InputError(f"{url} is damaged or truncated: {what}")
            except InputError as error:
                broken = error
            if broken and not self.repeatable:
                raise broken  # how much of a stream is lost is not known
            self.damage.shard(url, count, broken)
            total += count
        self.damage.check(total)

    def _read_tar(self, file: IO[bytes], url: str) -> Iterator[dict[str, Any]]:
        ours: dict[str, dict[str, Any]] = {}

        def entries() -> Iterator[dict[str, Any]]:
            key, size = "", 0
            for member, tar in members(file, "r|*"):
                before, key = key, split_name(member.name)[0]
                size = member.size + (size if key == before else 0)
                if size > LARGEST:
                    raise ValueError(f"sample {key!r} is of more than {LARGEST} bytes")
                if member.name in (STREAM_HEADER, STREAM_END):
                    ours[member.name] = fields(parse_json(content(member, tar), url), url)
                elif not member.name.startswith("__"):
                    yield {"fname": member.name, "data": content(member, tar), "__url__": url}

        count = 0
        for sample in group_by_keys(entries(), keys=split_name):
            if STREAM_HEADER in ours and count == 0:
                yield {"header": ours[STREAM_HEADER]}
            count += 1
            yield sample
        if STREAM_HEADER in ours and ours.get(STREAM_END, {}).get("samples") != count:
            raise InputError(f"{url} ended early, after {count} samples: its writer stopped or the pipe broke")


def open_shards(location: str, kind: str, decode: Decode, on_bad: OnBad = "error") -> ShardFolder | ShardStream:
    """Any shard argument: random access where mfkit wrote an index, else a stream in order."""
    damage = Damage(on_bad)
    path = Path(location)
    if unfinished(path):
        raise InputError(f"{path} is not finished: run the command that writes it again")
    if location == STREAM and processes().num_processes > 1:
        raise UsageError("standard input has one reader: run one process, or give shards")
    if path.is_dir() and (path / INDEX_NAME).exists():
        return ShardFolder(open_artifact(path, kinds=(kind,)), decode, damage)
    if path.is_file() and path.suffix == ".safetensors":
        raise InputError(f"{path} is a {open_artifact(path).kind} file; expected: a folder or shards of {kind}")
    return ShardStream(location, decode, kind, damage)


def shard_urls(location: str) -> list[str]:
    """The shards that a folder, glob, brace range, ``-`` or ``pipe:`` URL names, sorted within a folder or glob."""
    path = Path(location)
    if location == "-" or location.startswith("pipe:"):
        return [location]
    if location.count("{") > _LONGEST or _names(location) > _MOST:
        raise UsageError(f"{location} names more than {_MOST} shards")
    if path.is_dir():
        urls = sorted(str(shard) for shard in path.glob("*.tar"))
    elif any(mark in location for mark in "*?["):
        urls = sorted(file for pattern in expand_urls(location) for file in glob.glob(pattern))
    else:
        urls = expand_urls(location)
    missing = [url for url in urls if "://" not in url and not Path(url).is_file()]
    if missing or not urls:
        raise InputError(f"{missing[0]} does not exist" if missing else f"{location} holds no .tar shards")
    return urls


def _names(text: str) -> int:
    """How many names the braces in a text stand for."""
    names, depth, begin = 1, 0, 0
    parts: list[str] = []
    for place, char in enumerate(text):
        if char == "{":
            depth += 1
            if depth == 1:
                begin, parts = place + 1, []
        elif char in ",}" and depth == 1:
            parts.append(text[begin:place])
            begin = place + 1
        if char == "}" and depth:
            depth -= 1
            if depth == 0:
                names *= sum(map(_names, parts)) if len(parts) > 1 else _range(parts[0])
    return names


def _range(text: str) -> int:
    """How many numbers or letters a range holds; of other text, how many names."""
    ends = re.fullmatch(r"(-?\d+|[a-zA-Z])\.\.(-?\d+|[a-zA-Z])(\.\..*)?", text)
    if not ends:
        return _names(text)
    if len(text) > _LONGEST:
        return _MOST + 1
    first, last = (ord(end) if end.isalpha() else int(end) for end in ends.groups()[:2])
    return abs(last - first) + 1


def _is_plain_tar(url: str) -> bool:
    """Whether it is a file on this machine that begins as a tar does, not as a compressed one."""
    path = Path(url)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(262)[257:] == b"ustar"


def open_url(url: str) -> IO[bytes]:
    """A shard's bytes: a file of this machine, whatever its name, else what webdataset makes of a pipe or URL.

    :raises UsageError: it is a ``pipe:``, and ``WDS_SECURE`` is set.
    """
    if Path(url).is_file():
        return Path(url).open("rb")
    if url.startswith("pipe:") and os.environ.get("WDS_SECURE", "0") not in ("", "0"):
        raise UsageError(f"{url}: WDS_SECURE is set, so no pipe is opened")
    return wds.gopen(url)
