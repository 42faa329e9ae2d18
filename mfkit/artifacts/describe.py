"""inspect: what a file or folder is, from its own description; no weights are read."""

from math import prod
from pathlib import Path
from typing import Any

from mfkit.artifacts.artifact import INDEX_NAME, Artifact, open_artifact
from mfkit.artifacts.json_files import fields, read_json
from mfkit.artifacts.safetensors_files import safetensors_header


def describe(path: Path, *, tensors: bool) -> dict[str, Any]:
    """Kind, shapes, config and provenance; each tensor's dtype and shape with ``tensors``."""
    artifact = open_artifact(path)
    result: dict[str, Any] = {"path": str(path), "kind": artifact.kind, "digest": artifact.digest}
    if artifact.kind == "vae":
        return result | {"config": artifact.config}
    if path.is_dir():
        index = path / INDEX_NAME
        told = fields(read_json(index), index, samples=int, shards=list)
        result["samples"] = artifact.config.get("images", told["samples"])
        shards = [fields(shard, index, name=str, samples=int) for shard in told["shards"]]
        result["shards"] = {shard["name"]: shard["samples"] for shard in shards}
    else:
        entries = {name: entry for name, entry in safetensors_header(path).items() if name != "__metadata__"}
        result["tensors"] = (
            {name: [entry["dtype"], entry["shape"]] for name, entry in sorted(entries.items())}
            if tensors
            else len(entries)
        )
        result["numbers"] = sum(prod(entry["shape"]) for entry in entries.values())
    return result | {"config": artifact.config, "provenance": artifact.provenance}


def chain(artifact: Artifact) -> list[dict[str, Any]]:
    """The records of all commands that led to a file, in an order in which they can be run; its own is the last."""
    records = artifact.provenance.get("history", {}) | {artifact.digest: artifact.provenance}
    ordered: dict[str, dict[str, Any]] = {}
    begun: set[str] = set()
    waiting = [artifact.digest]
    while waiting:
        digest = waiting[-1]
        inputs = [entry["digest"] for entry in records[digest].get("inputs", {}).values()]
        before = [one for one in inputs if one in records and one not in ordered and one not in begun]
        if digest not in begun and before:
            begun.add(digest)
            waiting += reversed(before)
        else:
            ordered.setdefault(digest, records[digest])
            waiting.pop()
    return [record for record in ordered.values() if record]
