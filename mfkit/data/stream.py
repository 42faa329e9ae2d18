"""Datasets in order: tars from a pipe, standard input, a remote place, or compressed."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import webdataset as wds
from webdataset.tariterators import group_by_keys

from mfkit.artifacts.artifact import FORMAT, LISTING_DIGEST, Artifact, parse_description
from mfkit.artifacts.json_files import parse, parse_json
from mfkit.data.dataset import Decode
from mfkit.data.index import STREAM_END, STREAM_HEADER
from mfkit.data.skip import SkipPolicy
from mfkit.data.tar import MAX_BYTES, TAR_ERRORS, content, members, split_name
from mfkit.errors import InputError, UsageError, reason
from mfkit.formats.hub import HUB, hub_errors

_MAX_PEEKED = 20
"""Unreadable samples at the beginning that are looked past for the shape of the others."""
_CHECK_AFTER = 1000
"""Samples after which the share of skipped ones is looked at."""


class StreamDataset:
    """Samples in the order of the shards, decoded one by one."""

    def __init__(
        self, location: str, urls: list[str], decode: Decode, kinds: tuple[str, ...], skips: SkipPolicy
    ) -> None:
        """:param urls: tars: local files, ``-``, ``pipe:`` or what webdataset opens."""
        self.location, self.skips, self.decode = location, skips, decode
        self.repeatable = not location.startswith(("-", "pipe:"))
        self._urls = urls
        self._seen = 0
        self._description: Any = None
        """The header of the first tar, where mfkit wrote it as a stream."""
        self._begun = self._read()
        """The first pass."""
        self._ahead = list(islice(self._begun, 1))
        """Samples of the first pass that have been read by looking ahead; empty in later ones."""
        if not self._ahead:
            raise InputError(f"{location} holds no samples")
        self.artifact = listed_artifact(location, urls, kinds, self._description)

    def peek(self) -> dict[str, Any]:
        """The first sample, decoded, before it is read; where unreadable ones are skipped, the first that is not."""
        while True:
            try:
                return self.decode(self._ahead[-1])
            except InputError:
                if not self.skips.skips or len(self._ahead) > _MAX_PEEKED or (one := next(self._begun, None)) is None:
                    raise
                self._ahead.append(one)

    def raw_samples(self) -> Iterator[dict[str, Any]]:
        """One pass over the samples, not decoded; a pipe gives a single one."""
        ahead, self._ahead = self._ahead, []
        yield from ahead
        yield from self._begun if ahead else self._read()

    def samples(self) -> Iterator[dict[str, Any]]:
        """:meth:`raw_samples`, decoded, without those that are skipped."""
        for number, raw in enumerate(self.raw_samples()):
            self._seen = max(self._seen, number)  # of all passes, as what they skipped
            sample = self.skips.read(number, partial(self.decode, raw))
            if sample is not None:
                yield sample
            elif self._seen >= _CHECK_AFTER:
                self.skips.check(self._seen, so_far=True)

    def _read(self) -> Iterator[dict[str, Any]]:
        total = 0
        for url in self._urls:
            count, error = 0, None
            try:
                with open_url(url) as file:
                    for sample in self._read_tar(file, url):
                        yield sample
                        count += 1
            except TAR_ERRORS as damage:
                failed = url.startswith("pipe:") and isinstance(damage, OSError)
                what = "its command failed" if failed else reason(damage)
                error = InputError(f"{url} is damaged or truncated: {what}")
            except InputError as damage:
                error = damage
            if error and not self.repeatable:
                raise error  # how much of a stream is lost is not known
            self.skips.add_shard(url, count, error)
            total += count
        self.skips.check(total)

    def _read_tar(self, file: IO[bytes], url: str) -> Iterator[dict[str, Any]]:
        own: dict[str, dict[str, Any]] = {}
        """What a tar says of itself that mfkit wrote as a stream."""

        def entries() -> Iterator[dict[str, Any]]:
            key, size = "", 0
            for member, tar in members(file, "r|*"):
                before, key = key, split_name(member.name)[0]
                size = member.size + (size if key == before else 0)
                if size > MAX_BYTES:
                    raise ValueError(f"sample {key!r} is of more than {MAX_BYTES} bytes")
                if member.name in (STREAM_HEADER, STREAM_END):
                    own[member.name] = parse(dict, parse_json(content(member, tar), url), url)
                elif not member.name.startswith("__"):
                    yield {"fname": member.name, "data": content(member, tar), "__url__": url}

        count = 0
        for sample in group_by_keys(entries(), keys=split_name):
            self._description = self._description or own.get(STREAM_HEADER)
            count += 1
            yield sample
        if STREAM_HEADER in own and own.get(STREAM_END, {}).get("samples") != count:
            raise InputError(f"{url} ended early, after {count} samples: its writer stopped or the pipe broke")


def listed_artifact(location: str, urls: list[str], kinds: tuple[str, ...], description: Any) -> Artifact:
    """What tars without an index say of themselves: the description in a stream of mfkit's, else the first kind alone.

    Their digest is that of their names: the content is not read twice.
    """
    listing = hashlib.sha256(json.dumps([urls, description]).encode()).hexdigest()
    description = description or {"format": FORMAT, "kind": kinds[0], "config": {}, "provenance": {}}
    artifact = parse_description(Path(location), description, location, content_digest=LISTING_DIGEST + listing)
    if artifact.kind not in kinds:
        raise InputError(f"{location} is a stream of {artifact.kind}; expected: {' or '.join(kinds)}")
    return artifact


def open_url(url: str) -> IO[bytes]:
    """A shard's bytes: a file of this machine, whatever its name, else what webdataset makes of a pipe or URL.

    :raises UsageError: it is a ``pipe:``, and ``WDS_SECURE`` is set. :raises InputError: the hub cannot be reached.
    """
    if Path(url).is_file():
        return Path(url).open("rb")
    if url.startswith("pipe:") and os.environ.get("WDS_SECURE", "0") not in ("", "0"):
        raise UsageError(f"{url}: WDS_SECURE is set, so no pipe is opened")
    with hub_errors(f"{url} cannot be read") if url.startswith(HUB) else nullcontext():
        return wds.gopen(url)
