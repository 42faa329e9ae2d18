"""inspect: what a file or folder is, from its own description; no weights are read."""

import json
from math import prod
from pathlib import Path
from typing import Any

from mfkit.files.artifact import INDEX_NAME, Artifact, open_artifact, safetensors_header


def describe(path: Path, *, tensors: bool) -> dict[str, Any]:
    """Kind, shapes, config and provenance; each tensor's dtype and shape with ``tensors``."""
    artifact = open_artifact(path)
    result: dict[str, Any] = {"path": str(path), "kind": artifact.kind, "digest": artifact.digest}
    if artifact.kind == "vae":
        return result | {"config": artifact.config}
    if path.is_dir():
        index = json.loads((path / INDEX_NAME).read_text())
        shards = index["shards"]
        result["samples"] = artifact.config.get("images", index["samples"])
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
    history = artifact.provenance.get("history", {})
    ordered: dict[str, dict[str, Any]] = {}

    def visit(digest: str, record: dict[str, Any]) -> None:
        for entry in record.get("inputs", {}).values():
            if entry["digest"] in history and entry["digest"] not in ordered:
                visit(entry["digest"], history[entry["digest"]])
        ordered[digest] = record

    visit(artifact.digest, artifact.provenance)
    return [record for record in ordered.values() if record]
