"""What mfkit writes of samples: plain tars for any WebDataset reader, a folder of them with its index, a stream.

A folder is shared among processes, resumed where it stopped, and complete once its index is there.
"""

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Self

import webdataset as wds

from mfkit.artifacts.artifact import FOLDER_KINDS, Artifact, Provenance, describe, file_digest, open_artifact
from mfkit.artifacts.atomic import atomic_write, check_replaceable, output_is_complete, write_text, writer_lock
from mfkit.artifacts.json_files import parse, read_json
from mfkit.data.index import STREAM_END, STREAM_HEADER, FolderIndex, Shard, StoredArray, scan_sample, write_index
from mfkit.errors import InputError, OutputError, UsageError
from mfkit.runtime.distributed import processes
from mfkit.setting import differences

logger = logging.getLogger(__name__)

STREAM = "-"
"""The location that stands for a tar stream on standard input or output."""
_PROGRESS = ".progress"
"""Subfolder of records in a folder that is still being written."""
_TIME = ".time.json"
"""How long it took, in a hidden file: nothing else of a folder depends on that."""

TarSample = dict[str, Any]
"""``__key__``, and bytes by suffix."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What is recorded of a finished part of a folder: a shard, or image files."""

    shard: Shard | None = None
    arrays: dict[str, StoredArray] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    """Why samples are missing, by their index."""
    files: dict[str, str] = field(default_factory=dict)
    """Digests of image files by their paths in the folder."""


def write_shard(path: Path, samples: Iterable[TarSample]) -> ShardRecord:
    """Writes samples as one tar, the same bytes for the same samples."""
    with atomic_write(path) as partial:
        with partial.open("wb") as file:
            offsets, labels = _write_tar(file, samples)
        with partial.open("rb") as written:
            first = written.read(offsets[1]) if labels else b""
        digest = file_digest(partial)
    alike = len({end - begin for begin, end in pairwise(offsets)}) == 1
    return ShardRecord(
        shard=Shard(name=path.name, digest=digest, samples=len(labels), offsets=offsets, labels=labels),
        arrays=scan_sample(first).arrays if alike else {},
    )


def write_stream(
    file: IO[bytes], kind: str, config: Mapping[str, Any], provenance: Provenance, samples: Iterable[TarSample]
) -> None:
    """One tar of samples that describes itself first and says at the end that it is whole."""
    header = json.dumps(describe(kind, config, provenance)).encode()

    def members() -> Iterator[TarSample]:
        yield {"__key__": STREAM_HEADER.removesuffix(".json"), "json": header}
        count = 0
        for sample in samples:
            count += 1
            yield sample
        yield {"__key__": STREAM_END.removesuffix(".json"), "json": json.dumps({"samples": count}).encode()}

    _write_tar(file, members())
    file.flush()


def write_standard_output(
    kind: str, config: Mapping[str, Any], provenance: Provenance, samples: Iterable[TarSample]
) -> None:
    """:func:`write_stream` to standard output, which has room for one process only."""
    if processes().num_processes > 1:
        raise UsageError("a stream on standard output has one writer; run one process, or write a folder with -o")
    write_stream(sys.stdout.buffer, kind, config, provenance, samples)


def _write_tar(file: IO[bytes], samples: Iterable[TarSample]) -> tuple[list[int], list[int]]:
    """Writes the samples: the byte at which each begins, and the end of the last; and their labels."""
    offsets, labels = [0], []
    with wds.TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
            offsets.append(writer.tarstream.offset)
            labels.append(int(sample.get("cls", b"0")))
    return offsets, labels


def seconds_of(folder: Path) -> float | None:
    """Wall-clock time that it took to write a folder, with runs that a signal ended; None where that is not known."""
    path = folder / _TIME
    return parse(_Time, read_json(path), path).seconds if path.exists() else None


def check_finished(path: Path) -> None:
    """:raises InputError: it is a folder that a command was interrupted in writing."""
    if (path / _PROGRESS).exists():
        raise InputError(f"{path} is not finished: run the command that writes it again")


@dataclass(frozen=True)
class _Time:
    seconds: float


class FolderWriter:
    """Process k of W writes the shards k, k + W, …; a shard that is committed is not written again.

    A context manager: within it, no other command may write the folder.
    """

    def __init__(
        self, folder: Path, inputs: Mapping[str, Artifact], settings: Mapping[str, Any], *, overwrite: bool,
        shards: int | None = None,
    ) -> None:  # fmt: skip
        """Shards of an interrupted run are kept where its inputs and settings are the same.

        :param shards: how many there will be, where that is known.
        """
        self.folder = folder
        self._progress = folder / _PROGRESS
        self._started = self._progress / "settings"
        self._resume_key = dict(settings) | {role: artifact.digest for role, artifact in inputs.items()}
        self._inputs = [artifact.path for artifact in inputs.values()]
        self._overwrite = overwrite
        self._world = processes()
        self._lock = ExitStack()
        self._began = time.perf_counter()
        if shards is not None and shards < self._world.num_processes and self._world.is_main_process:
            logger.warning("%d shards for %d processes: some have nothing to do", shards, self._world.num_processes)

    def __enter__(self) -> Self:
        if self._world.is_main_process:
            self._lock.enter_context(writer_lock(self.folder))
            try:
                self._start()
            except BaseException:
                self._lock.close()
                raise
        self._world.wait_for_everyone()
        return self

    def _start(self) -> None:
        if self._overwrite or not self._started.exists():
            _claim(self.folder, self._overwrite, self._inputs)
            write_text(self._started, json.dumps(self._resume_key))
            return
        try:
            before = json.loads(self._started.read_text())
        except ValueError as error:
            raise OutputError(f"{self._started} is damaged; pass --overwrite to start anew") from error
        if different := differences(before, json.loads(json.dumps(self._resume_key))):
            raise OutputError(
                f"{self.folder} was started with different settings ({different}); pass --overwrite to start anew"
            )
        for partial in self.folder.rglob(".*.partial"):  # of a process that was killed
            partial.unlink()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """After an error with nothing committed yet, no folder is left that stands for nothing."""
        alone = self._world.num_processes == 1 and list(self.folder.iterdir()) == [self._progress]
        if kind and alone and not any(self._progress.glob("*.json")):
            shutil.rmtree(self.folder)
        elif kind and self._world.is_main_process:
            with suppress(OutputError):  # the error on its way is the one to tell
                self._note_time()
        self._lock.close()

    def is_mine(self, shard: int) -> bool:
        """Whether this process is to write the shard."""
        return shard % self._world.num_processes == self._world.process_index and not self._record(shard).exists()

    def write(self, shard: int, samples: Iterable[TarSample], skipped: Callable[[], Mapping[int, str]] = dict) -> None:
        """Writes a shard of samples as a tar, and commits it.

        :param skipped: why samples are missing from it, by their index, once it is written.
        """
        record = write_shard(self.folder / f"{shard:05d}.tar", samples)
        self._commit(shard, replace(record, skipped=dict(skipped())))

    def commit_files(self, shard: int, files: Mapping[str, str]) -> None:
        """Commits a part of the folder that is image files, not a tar.

        :param files: their digests by their paths in the folder.
        """
        self._commit(shard, ShardRecord(files=dict(files)))

    def _commit(self, shard: int, record: ShardRecord) -> None:
        write_text(self._record(shard), json.dumps(asdict(record)))

    def records(self) -> list[ShardRecord]:
        """What any process committed, in this run or an earlier one. Waits for all processes."""
        self._world.wait_for_everyone()
        return [parse(ShardRecord, read_json(path), path) for path in sorted(self._progress.glob("*.json"))]

    def finish(
        self, kind: str, config: Mapping[str, Any], provenance: Provenance, records: Sequence[ShardRecord]
    ) -> None:
        """Waits for all processes and writes the index of the ``records``."""
        self._world.wait_for_everyone()  # until each has read them
        if self._world.is_main_process:
            shards = [record.shard for record in records if record.shard]
            # Every shard has the same arrays, since one command wrote them all; an empty one has none.
            arrays = next((record.arrays for record in records if record.arrays), {})
            alike = all(record.arrays == arrays for record in records if record.shard and record.shard.samples)
            index = FolderIndex(
                samples=sum(shard.samples for shard in shards), shards=shards, arrays=arrays if alike else {},
                files={name: digest for record in records for name, digest in record.files.items()},
            )  # fmt: skip
            self._note_time()
            write_index(self.folder, kind, config, provenance, index)
            output_is_complete()
            for path in self._progress.iterdir():
                if path != self._started:
                    path.unlink()
            self._started.unlink()  # last: as long as it is there, the same command goes on
            self._progress.rmdir()
        self._world.wait_for_everyone()

    def _note_time(self) -> None:
        seconds = time.perf_counter() - self._began + (seconds_of(self.folder) or 0)
        write_text(self.folder / _TIME, json.dumps(asdict(_Time(seconds))))

    def _record(self, shard: int) -> Path:
        return self._progress / f"{shard:08d}.json"


def _claim(folder: Path, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Refuses a folder as output that holds anything, unless ``overwrite`` and mfkit wrote it: then it is removed."""
    if folder.is_file():
        raise OutputError(f"{folder} is a file; give the name of a folder")
    if not folder.exists() or all(path.name == _PROGRESS for path in folder.iterdir()):  # stopped before its first file
        return
    check_replaceable(folder, inputs, overwrite=overwrite)
    if not _is_ours(folder):
        raise OutputError(f"{folder} was not written by mfkit, so --overwrite does not remove it")
    shutil.rmtree(folder)


def _is_ours(folder: Path) -> bool:
    try:
        return (folder / _PROGRESS).exists() or open_artifact(folder).kind in FOLDER_KINDS
    except InputError:
        return False
