"""Files that describe themselves: kind, config and provenance, read from a safetensors file or a shard folder.

Provenance is a record of the command that made the file, with the inputs by role, and ``history``, the records of
these inputs and of theirs by digest, so that the whole chain can be read from the last file alone.
"""

import hashlib
import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mfkit.artifacts.json_files import fields, parse_json, read_json
from mfkit.artifacts.safetensors_files import safetensors_header
from mfkit.artifacts.schema import check_config, check_provenance
from mfkit.errors import InputError
from mfkit.formats import diffusers_folder

logger = logging.getLogger(__name__)

INDEX_NAME = "index.json"
NAMES_DIGEST = "names-sha256:"
"""Begins the digest of what was listed, not read: the images of a folder, foreign shards."""
FOLDER_KINDS = ("latents", "trajectories", "images")
_PREFIX = "mfkit."


@dataclass(frozen=True)
class Artifact:
    """What a file or folder written by mfkit says of itself."""

    path: Path
    kind: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    content_digest: str | None = None
    """Given where the content cannot be read twice, as for the images of ``digits`` or a stream."""
    is_word: bool = False
    """``path`` is a word that stands for built-in data, whatever lies on the disk under that name."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file; of a shard folder, that of its index, which holds the digests of the shards."""
        if self.content_digest is not None:
            return self.content_digest
        return file_digest(self.path / INDEX_NAME if self.path.is_dir() else self.path)

    @property
    def inputs(self) -> dict[str, dict[str, Any]]:
        return self.provenance.get("inputs", {})

    def recorded(self, role: str, option: str) -> "Artifact":
        """The input that this file was made from, found at its recorded place, unchanged.

        :param option: the option that names it by hand, for the error.
        """
        if role not in self.inputs:
            raise InputError(f"{self.path} does not say where its {role} is; name it with {option}")
        entry = self.inputs[role]
        if entry["path"] is None:
            raise InputError(f"the {role} of {self.path} was a stream; name it with {option}")
        path = self._locate(entry["path"])
        pattern = entry["digest"].startswith(NAMES_DIGEST) and any(mark in path.name for mark in "*?[{")
        if "::" in str(path) or not (pattern or path.is_file() or path.is_dir()):
            raise InputError(f"{path}, the {role} of {self.path}, is gone; name it with {option}")
        logger.info("%s: its %s is %s", self.path, role, path)
        if entry["digest"].startswith(NAMES_DIGEST):  # foreign images or shards, which do not describe themselves
            return Artifact(path, entry["kind"], {}, {}, content_digest=entry["digest"])
        found = open_artifact(path, kinds=(entry["kind"],))
        if found.digest != entry["digest"]:
            raise InputError(
                f"{path} has changed since {self.path} was made from it; name it with {option} to use it all the same"
            )
        return found

    def _locate(self, recorded: str) -> Path:
        """A recorded path from this file's folder, or, where that leads nowhere, from that of the file linked to.

        It is absolute, so that it is a place on this machine whatever it says: no pipe, no URL.
        """
        places = []
        for own in (self.path, self.path.resolve()):
            base = own if own.is_dir() else own.parent
            places.append(Path(os.path.normpath((base / recorded).absolute())))
        return next((place for place in places if place.exists()), places[-1])

    def mention(self, role: str) -> dict[str, "Artifact"]:
        """The input of this role as it was recorded, unopened, to be recorded again; empty where there is none."""
        if role not in self.inputs or self.inputs[role]["path"] is None:
            return {}
        entry = self.inputs[role]
        return {role: Artifact(self._locate(entry["path"]), entry["kind"], {}, {}, content_digest=entry["digest"])}

    def lineage(self, *kinds: str) -> set[str]:
        """Digests of all files of these kinds that this one descends from, itself included."""
        own = {self.digest} if self.kind in kinds else set()
        records = [self.provenance, *self.provenance.get("history", {}).values()]
        return own | {
            entry["digest"]
            for record in records
            for entry in record.get("inputs", {}).values()
            if entry["kind"] in kinds
        }


def provenance(folder: Path, inputs: Mapping[str, Artifact], *, seed: int | None) -> dict[str, Any]:
    """The record for a file that this command makes in ``folder``, to which input paths are relative."""
    entries: dict[str, Any] = {}
    history: dict[str, Any] = {}
    for role, artifact in inputs.items():
        entries[role] = {
            "path": _recorded_path(artifact, folder),
            "kind": artifact.kind,
            "digest": artifact.digest,
        }
        record = dict(artifact.provenance)
        history |= record.pop("history", {})
        if record:
            history[artifact.digest] = record
    return {
        "version": version("mfkit"),
        "libraries": library_versions(),
        "command": shlex.join(["mfkit", *sys.argv[1:]]),
        "seed": seed,
        "inputs": entries,
        "history": history,
    }


def _recorded_path(artifact: Artifact, base: Path) -> str | None:
    """Relative to ``base`` for a file or folder; None for a stream; a word as it stands."""
    if artifact.is_word:
        return str(artifact.path)
    if str(artifact.path).startswith(("-", "pipe:")):
        return None
    return os.path.relpath(artifact.path.resolve(), base.resolve())


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "timm", "diffusers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    return versions


def open_artifact(path: Path, kinds: tuple[str, ...] = ()) -> Artifact:
    """Reads what a safetensors file, a shard folder or a diffusers VAE says of itself.

    :param kinds: those wanted; another one is refused.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not path.is_dir() and not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder")
    artifact = _from_folder(path) if path.is_dir() else _from_header(path)
    if kinds and artifact.kind not in kinds:
        raise InputError(f"{path} is a {artifact.kind} file; expected: {' or '.join(kinds)}")
    return artifact


def index_digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of what an index says beside its own digest."""
    said = {name: value for name, value in document.items() if name != "digest"}
    return digest(json.dumps(said, sort_keys=True).encode())


def index_is_intact(folder: Path) -> bool:
    """Whether the index of a folder says what was written."""
    document = fields(read_json(folder / INDEX_NAME), folder / INDEX_NAME)
    return document.get("digest") == index_digest(document)


def metadata(kind: str, config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, str]:
    """The text entries of a safetensors file that describes itself."""
    return {
        "format": "pt",
        _PREFIX + "kind": kind,
        _PREFIX + "config": json.dumps(config),
        _PREFIX + "provenance": json.dumps(record),
    }


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _from_folder(path: Path) -> Artifact:
    if diffusers_folder.class_name(path) == diffusers_folder.VAE:
        config, _ = diffusers_folder.open_folder(path, diffusers_folder.VAE)
        return Artifact(path, "vae", config, {}, content_digest=diffusers_folder.digest(path))
    index = path / INDEX_NAME
    if not index.exists():
        raise InputError(f"{path} has no {INDEX_NAME}: mfkit did not write this folder, or not to its end")
    return _of_form(described(path, read_json(index), index), folder=True)


def _from_header(path: Path) -> Artifact:
    entries = safetensors_header(path).get("__metadata__", {})
    if _PREFIX + "kind" not in entries:
        raise InputError(f"{path} is a safetensors file, but mfkit did not write it: it does not say what it holds")
    document = {"kind": entries[_PREFIX + "kind"]} | {
        name: parse_json(entries.get(_PREFIX + name, ""), f"{path}: its {name}") for name in ("config", "provenance")
    }
    return _of_form(described(path, document, path), folder=False)


def _of_form(artifact: Artifact, *, folder: bool) -> Artifact:
    """Shards and images are folders, networks and checkpoints are files."""
    if (artifact.kind in FOLDER_KINDS) is not folder:
        raise InputError(f"{artifact.path} is damaged: a {'folder' if folder else 'file'} of kind {artifact.kind}")
    return artifact


def described(path: Path, document: Any, source: object, content_digest: str | None = None) -> Artifact:
    """The artifact that a description stands for, once it is known to be one.

    :raises InputError: it lacks what files of its kind hold.
    """
    found = fields(document, source, kind=str, config=dict, provenance=dict)
    check_config(found["kind"], found["config"], source)
    check_provenance(found["provenance"], source)
    return Artifact(path, found["kind"], found["config"], found["provenance"], content_digest=content_digest)
