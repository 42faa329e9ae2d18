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
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mfkit.artifacts.json_files import parse, parse_json, parse_known, read_json
from mfkit.artifacts.safetensors_files import Header, read_header
from mfkit.errors import InputError

logger = logging.getLogger(__name__)

FORMAT = 2
"""Version of descriptions. Files of another one are refused."""
INDEX_NAME = "index.json"
LISTING_DIGEST = "names-sha256:"
"""Begins the digest of what was listed, not read: the images of a folder, foreign shards."""
FOLDER_KINDS = ("latents", "trajectories", "images")
_PREFIX = "mfkit."


@dataclass(frozen=True)
class InputRecord:
    """An input of a command."""

    path: str | None
    """Relative to the output's folder; None for a stream."""
    kind: str
    digest: str


@dataclass(frozen=True)
class Record:
    """The command that made a file."""

    command: str = ""
    version: str = ""
    libraries: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    inputs: dict[str, InputRecord] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """Of a training: all of them, whoever gave them."""


@dataclass(frozen=True)
class Provenance(Record):
    """A record with those of its inputs, of theirs, and so on, by digest."""

    history: dict[str, Record] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """What a file or folder says of itself."""

    path: Path
    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    content_digest: str | None = None
    """Given where the content cannot be read twice, as for the images of ``digits`` or a stream."""
    is_keyword: bool = False
    """``path`` is a word that stands for built-in data, whatever lies on the disk under that name."""
    header: Header | None = field(default=None, compare=False, repr=False)
    """Of a safetensors file."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file; of a shard folder, that of its index, which holds the digests of the shards."""
        if self.content_digest is not None:
            return self.content_digest
        return file_digest(self.path / INDEX_NAME if self.path.is_dir() else self.path)

    @property
    def inputs(self) -> dict[str, InputRecord]:
        return self.provenance.inputs

    def input_path(self, role: str, option: str) -> Path:
        """Where the input of this role was recorded to be, and still is something.

        :param option: the option that names it by hand, for the error.
        """
        if role not in self.inputs:
            raise InputError(f"{self.path} does not record its {role}; pass {option}")
        entry = self.inputs[role]
        if entry.path is None:
            raise InputError(f"the {role} of {self.path} was a stream; pass {option}")
        path = self._locate(entry.path)
        pattern = entry.digest.startswith(LISTING_DIGEST) and any(mark in path.name for mark in "*?[{")
        if "::" in str(path) or not (pattern or path.is_file() or path.is_dir()):
            raise InputError(f"{path}, the {role} of {self.path}, is gone; pass {option}")
        logger.info("%s: its %s is %s", self.path, role, path)
        return path

    def check_input(self, role: str, found: "Artifact", option: str) -> None:
        """Refuses what was found at the recorded place where it is no longer what this file was made from."""
        entry = self.inputs[role]
        if (found.kind, found.digest) != (entry.kind, entry.digest):
            raise InputError(
                f"{found.path} has changed since {self.path} was made from it; pass {option} to use it anyway"
            )

    def _locate(self, recorded: str) -> Path:
        """A recorded path from this file's folder, or, where that leads nowhere, from that of the file linked to.

        It is absolute, so that it is a place on this machine whatever it says: no pipe, no URL.
        """
        places = []
        for own in (self.path, self.path.resolve()):
            base = own if own.is_dir() else own.parent
            places.append(Path(os.path.normpath((base / recorded).absolute())))
        return next((place for place in places if place.exists()), places[-1])

    def reference(self, role: str) -> dict[str, "Artifact"]:
        """The input of this role as it was recorded, unopened, to be recorded again; empty where there is none."""
        if role not in self.inputs or self.inputs[role].path is None:
            return {}
        entry = self.inputs[role]
        return {role: Artifact(self._locate(str(entry.path)), entry.kind, content_digest=entry.digest)}

    def ancestors(self, role: str) -> set[str]:
        """Digests of all inputs of this role that this file, or one that it descends from, was made from."""
        records = [self.provenance, *self.provenance.history.values()]
        return {record.inputs[role].digest for record in records if role in record.inputs}


def record_provenance(
    folder: Path, inputs: Mapping[str, Artifact], *, seed: int | None, settings: Mapping[str, Any] | None = None
) -> Provenance:
    """The record for a file that this command makes in ``folder``, to which input paths are relative."""
    history: dict[str, Record] = {}
    for artifact in inputs.values():
        own = artifact.provenance
        history |= own.history
        if own.command:
            history[artifact.digest] = Record(
                own.command, own.version, own.libraries, own.seed, own.inputs, own.settings
            )
    return Provenance(
        command=shlex.join(["mfkit", *sys.argv[1:]]),
        version=version("mfkit"),
        libraries=library_versions(),
        seed=seed,
        inputs={
            role: InputRecord(_recorded_path(artifact, folder), artifact.kind, artifact.digest)
            for role, artifact in inputs.items()
        },
        settings=dict(settings or {}),
        history=history,
    )


def _recorded_path(artifact: Artifact, base: Path) -> str | None:
    """Relative to ``base`` for a file or folder; None for a stream; a keyword as it stands."""
    if artifact.is_keyword:
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
    """Reads what a safetensors file or a shard folder says of itself.

    :param kinds: those wanted; another one is refused.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not path.is_dir() and not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder")
    artifact = _from_folder(path) if path.is_dir() else _from_header(path)
    if (artifact.kind in FOLDER_KINDS) is not path.is_dir():
        raise InputError(f"{path} is damaged: a {'folder' if path.is_dir() else 'file'} of kind {artifact.kind}")
    if kinds and artifact.kind not in kinds:
        raise InputError(f"{path} is a {artifact.kind} file; expected: {' or '.join(kinds)}")
    return artifact


def _from_folder(path: Path) -> Artifact:
    index = path / INDEX_NAME
    if not index.exists():
        raise InputError(f"{path} has no {INDEX_NAME}: mfkit did not write this folder, or not to its end")
    return parse_description(path, read_json(index), index)


def _from_header(path: Path) -> Artifact:
    header = read_header(path)
    texts = {name.removeprefix(_PREFIX): text for name, text in header.metadata.items() if name.startswith(_PREFIX)}
    if "kind" not in texts:
        raise InputError(f"{path} is a safetensors file, but mfkit did not write it: it does not say what it holds")
    document = {"kind": texts["kind"]} | {
        name: parse_json(texts.get(name, "null"), f"{path}: its {name}") for name in ("format", "config", "provenance")
    }
    return replace(parse_description(path, document, path), header=header)


@dataclass(frozen=True)
class _Description:
    kind: str
    config: dict[str, Any]
    provenance: Provenance


def parse_description(path: Path, document: Any, source: object, *, content_digest: str | None = None) -> Artifact:
    """The artifact that a description stands for.

    :raises InputError: it is of another format, or lacks what descriptions hold.
    """
    document = parse(dict, document, source)
    if document.get("format") != FORMAT:
        raise InputError(
            f"{source} was written by another version of mfkit (format {document.get('format', 1)}; this one has "
            f"{FORMAT}): make it again"
        )
    found = parse_known(_Description, document, source)
    return Artifact(path, found.kind, found.config, found.provenance, content_digest)


def describe(kind: str, config: Mapping[str, Any], provenance: Provenance) -> dict[str, Any]:
    """The description of an artifact, as JSON."""
    return {"format": FORMAT, "kind": kind, "config": dict(config), "provenance": asdict(provenance)}


def metadata(kind: str, config: Mapping[str, Any], provenance: Provenance) -> dict[str, str]:
    """The same as the texts of a safetensors file."""
    description = describe(kind, config, provenance)
    texts = {name: value if name == "kind" else json.dumps(value) for name, value in description.items()}
    return {"format": "pt"} | {_PREFIX + name: text for name, text in texts.items()}


def index_digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of what an index says beside its own digest."""
    content = {name: value for name, value in document.items() if name != "digest"}
    return digest(json.dumps(content, sort_keys=True).encode())


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
