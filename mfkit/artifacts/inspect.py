"""inspect: what a file or folder is, from its own description; no weights are read."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import pairwise
from math import prod
from typing import Any

from mfkit.artifacts.artifact import INDEX_NAME, Artifact, Record
from mfkit.artifacts.json_files import read_json
from mfkit.errors import InputError


def inspect(artifact: Artifact, *, tensors: bool) -> dict[str, Any]:
    """Kind, shapes, config and provenance; each tensor's dtype and shape with ``tensors``."""
    result: dict[str, Any] = {"path": str(artifact.path), "kind": artifact.kind, "digest": artifact.digest}
    if artifact.header is not None:
        dtypes, shapes = artifact.header.dtypes, artifact.header.shapes
        result["tensors"] = {name: [dtypes[name], shapes[name]] for name in sorted(shapes)} if tensors else len(shapes)
        result["numbers"] = sum(prod(shape) for shape in shapes.values())
    elif artifact.path.is_dir() and (artifact.path / INDEX_NAME).exists():
        index = read_json(artifact.path / INDEX_NAME)
        result["samples"] = artifact.config.get("images", index.get("samples"))
        shards = index.get("shards", [])
        result["shards"] = {str(shard.get("name")): shard.get("samples") for shard in shards if isinstance(shard, dict)}
    return result | {"config": artifact.config, "provenance": asdict(artifact.provenance)}


def shell_script(artifact: Artifact) -> str:
    """The chain of commands that led to a file, in which each word is quoted: whatever a file says, mfkit alone is run.

    What one wrote to a pipe and another read from it are joined by one.

    :raises InputError: the file records no command, or something that is none of mfkit's, or not what wrote to a pipe.
    """
    lines = ["#!/bin/sh", "# As the file says. Each command is of the folder that it was run in.", "set -e"]
    written: dict[str, str] = {}
    for digest, record in _chain(artifact):
        try:
            words = shlex.split(record.command)
        except ValueError:
            words = []
        if words[:1] != ["mfkit"] or not all(word.isprintable() for word in words):
            raise InputError(f"{artifact.path} records what is no command of mfkit: {record.command[:80]!r}")
        line = shlex.join(words)
        piped = [before in ("-o", "--output") for before, word in pairwise(words) if word == "-"]
        if not all(piped):
            before = [written[entry.digest] for entry in record.inputs.values() if entry.digest in written]
            if not before:
                raise InputError(f"{artifact.path} does not say what was piped into: {line}")
            line = f"{before[0]} |\n    {line}"
        if any(piped):
            written[digest] = line
        else:
            lines.append(line)
    if len(lines) == 3:
        raise InputError(f"{artifact.path} records no command")
    return "\n".join(lines)


def command_chain(artifact: Artifact) -> list[Record]:
    """The records of all commands that led to a file, in an order in which they can be run; its own is the last."""
    return [record for _, record in _chain(artifact)]


def _chain(artifact: Artifact) -> list[tuple[str, Record]]:
    records: dict[str, Record] = artifact.provenance.history | {artifact.digest: artifact.provenance}
    return [(digest, records[digest]) for digest in in_order(records, [artifact.digest]) if records[digest].command]


def in_order(records: Mapping[str, Record], ends: Iterable[str]) -> list[str]:
    """The digests of records that led to some, and these: each after its inputs, and once, whatever files say."""
    ordered: dict[str, None] = {}
    visited: set[str] = set()
    stack = list(ends)[::-1]
    while stack:
        digest = stack[-1]
        inputs = [entry.digest for entry in records[digest].inputs.values()]
        before = [one for one in inputs if one in records and one not in ordered and one not in visited]
        if digest not in visited and before:
            visited.add(digest)
            stack += reversed(before)
        else:
            ordered.setdefault(digest)
            stack.pop()
    return list(ordered)
