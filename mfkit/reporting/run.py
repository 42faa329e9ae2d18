"""What lies in the folder of a run: files that describe themselves, training logs, what ``mfkit fid`` printed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfkit.artifacts.artifact import INDEX_NAME, Artifact, Record, open_artifact
from mfkit.artifacts.inspect import in_order
from mfkit.artifacts.json_files import read_json
from mfkit.data.writer import seconds_of
from mfkit.errors import InputError
from mfkit.training import log

_LOG = ".log.jsonl"


@dataclass(frozen=True)
class Step:
    """A command of the chain that made the files of a run."""

    name: str
    """Of what it made."""
    kind: str
    digest: str
    record: Record
    """Empty for what no command of mfkit made, as images."""
    inputs: list[str]
    """Digests of the steps before it."""
    seconds: float | None
    """That its command took, where it says so, or a log beside it."""


@dataclass
class Run:
    """A folder, read."""

    folder: Path
    files: dict[str, Artifact] = field(default_factory=dict)
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """That folders took to be written."""
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What ``mfkit fid`` printed, by file."""
    unread: list[str] = field(default_factory=list)
    """What is there but cannot be read, and why."""

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """:raises InputError: it is no folder, or nothing in it is mfkit's."""
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder")
        run = cls(folder)
        for path in sorted(folder.iterdir()):
            try:
                run._read(path)
            except InputError as error:
                run.unread.append(str(error))
        if not run.files:
            raise InputError(f"{folder} holds no file that mfkit wrote")
        return run

    def _read(self, path: Path) -> None:
        if path.name.endswith(_LOG):
            if lines := log.read(path):  # none yet where a training has just begun
                self.logs[path.name.removesuffix(_LOG)] = lines
        elif path.suffix == ".safetensors" or (path.is_dir() and (path / INDEX_NAME).exists()):
            self.files[path.name] = open_artifact(path)
            if path.is_dir() and (seconds := seconds_of(path)) is not None:
                self.seconds[path.name] = seconds
        elif path.suffix == ".json" and path.is_file():
            document = read_json(path)
            if isinstance(document, dict) and "frechet_distance" in document:
                self.figures[path.name] = document

    def of_kind(self, *kinds: str) -> dict[str, Artifact]:
        return {name: artifact for name, artifact in self.files.items() if artifact.kind in kinds}

    def last(self, kind: str) -> dict[str, Artifact]:
        """Those of a kind from which no other file of the kind was made."""
        known = self.of_kind(kind)
        before = {digest for artifact in known.values() for digest in artifact.provenance.history}
        return {name: artifact for name, artifact in known.items() if artifact.digest not in before}

    def steps(self) -> list[Step]:
        """All that led to the files, each after what it was made from."""
        records: dict[str, Record] = {}
        names: dict[str, tuple[str, str]] = {}
        for artifact in self.files.values():
            records |= artifact.provenance.history
        for name, artifact in self.files.items():
            records[artifact.digest] = artifact.provenance
            names[artifact.digest] = (name, artifact.kind)
        for record in records.values():
            for role, entry in record.inputs.items():
                names.setdefault(entry.digest, (Path(entry.path or role).name, entry.kind))
        for digest in records:
            names.setdefault(digest, ("a file", "unknown"))
        steps: dict[str, Step] = {}
        for digest in in_order(records, records):
            inputs = [entry.digest for entry in records[digest].inputs.values()]
            for one in (*(one for one in inputs if one not in records), digest):
                record, (name, kind) = records.get(one, Record()), names[one]
                own = inputs if one == digest else []
                steps.setdefault(one, Step(name, kind, one, record, own, self._seconds(name, record)))
        return list(steps.values())

    def _seconds(self, name: str, record: Record) -> float | None:
        """By what a folder says, or the logs of a file and of its parts, as an RAE's encoder has one."""
        if name in self.seconds:
            return self.seconds[name]
        stem, rows = name.removesuffix(".safetensors"), record.settings.get("batch_size")
        logs = [lines for log, lines in self.logs.items() if log == stem or log.startswith(f"{stem}.")]
        if not logs or not isinstance(rows, int):
            return None
        return sum(
            (line["step"] - begin) * rows / line["samples_per_second"]
            for lines in logs
            for begin, line in zip([0, *(line["step"] for line in lines[:-1])], lines, strict=True)
            if line["samples_per_second"] > 0
        )
