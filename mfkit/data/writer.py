"""A folder of results in the making: shared among processes, resumed where it stopped, complete with its index."""

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from mfkit.artifacts.artifact import FOLDER_KINDS, Artifact, open_artifact
from mfkit.artifacts.atomic import sole_writer, write_text
from mfkit.config.settings import differing
from mfkit.data.shards import PROGRESS, Shard, unfinished, write_index, write_shard
from mfkit.errors import InputError, OutputError
from mfkit.runtime.distributed import processes

logger = logging.getLogger(__name__)

_LABEL, _LEFT_OUT, _FILES = "largest_label", "left_out", "files"


class Production:
    """Process k of W writes the shards k, k + W, …; a shard that is marked as finished is not written again.

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
        self._progress = folder / PROGRESS
        self._begun = self._progress / "settings"
        self._identity = dict(settings) | {role: artifact.digest for role, artifact in inputs.items()}
        self._inputs = [artifact.path for artifact in inputs.values()]
        self._overwrite = overwrite
        self._state = processes()
        self._lock = ExitStack()
        if shards is not None and shards < self._state.num_processes and self._state.is_main_process:
            logger.warning("%d shards for %d processes: some have nothing to do", shards, self._state.num_processes)

    def __enter__(self) -> Self:
        if self._state.is_main_process:
            self._lock.enter_context(sole_writer(self.folder))
            try:
                self._begin()
            except BaseException:
                self._lock.close()
                raise
        self._state.wait_for_everyone()
        return self

    def _begin(self) -> None:
        if self._overwrite or not self._begun.exists():
            _claim(self.folder, self._overwrite, self._inputs)
            write_text(self._begun, json.dumps(self._identity))
            return
        try:
            before = json.loads(self._begun.read_text())
        except ValueError as error:
            raise OutputError(f"{self._begun} is damaged; give --overwrite to start anew") from error
        if different := differing(before, self._identity):
            raise OutputError(f"{self.folder} was begun otherwise ({different}); give --overwrite to start anew")
        for partial in self.folder.rglob(".*.partial"):  # of a process that was killed
            partial.unlink()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """After an error with nothing finished yet, no folder is left that stands for nothing."""
        alone = self._state.num_processes == 1 and list(self.folder.iterdir()) == [self._progress]
        if kind and alone and not any(self._progress.glob("*.json")):
            shutil.rmtree(self.folder)
        self._lock.close()

    def wanted(self, shard: int) -> bool:
        """Whether this process is to write the shard."""
        return shard % self._state.num_processes == self._state.process_index and not self._mark(shard).exists()

    def write(
        self, shard: int, samples: Iterable[dict[str, Any]], left_out: Callable[[], Mapping[int, str]] = dict
    ) -> None:
        """Writes a shard of samples as a tar, and marks it as finished.

        :param left_out: rows that are missing from it, and why, once it is written.
        """
        largest = 0

        def labelled() -> Iterator[dict[str, Any]]:
            nonlocal largest
            for sample in samples:
                largest = max(largest, int(sample["cls"]))
                yield sample

        written = write_shard(self.folder / f"{shard:05d}.tar", labelled())
        self._write_mark(shard, asdict(written) | {_LABEL: largest, _LEFT_OUT: list(left_out().items())})

    def largest_label(self) -> int:
        """The largest class index that any process wrote. Waits for all processes."""
        self._state.wait_for_everyone()
        return max((record[_LABEL] for record in self._records()), default=0)

    def left_out(self) -> dict[int, str]:
        """Rows that are missing from the shards that are finished, in this run or an earlier one. Waits for all."""
        self._state.wait_for_everyone()
        return {row: why for record in self._records() for row, why in record.get(_LEFT_OUT, [])}

    def written(self) -> int:
        """Samples in the shards that any process wrote, in this run or an earlier one. Waits for all processes."""
        self._state.wait_for_everyone()
        return sum(len(record["offsets"]) - 1 for record in self._records())

    def mark_files(self, shard: int, files: Mapping[str, str]) -> None:
        """Marks a part of the folder as finished that is files, not a tar.

        :param files: their digests by their paths in the folder.
        """
        self._write_mark(shard, {_FILES: dict(files)})

    def _write_mark(self, shard: int, record: Mapping[str, Any]) -> None:
        write_text(self._mark(shard), json.dumps(record))

    def finish(self, kind: str, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        """Waits for all processes and writes the index."""
        self._state.wait_for_everyone()
        if self._state.is_main_process:
            shards = [
                Shard(record["name"], record["digest"], record["offsets"])
                for record in self._records()
                if "offsets" in record
            ]
            files = {name: digest for record in self._records() for name, digest in record.get(_FILES, {}).items()}
            write_index(self.folder, kind, config, provenance, shards, files)
            for mark in self._progress.iterdir():
                if mark != self._begun:
                    mark.unlink()
            self._begun.unlink()  # last: as long as it is there, the same command goes on
            self._progress.rmdir()
        self._state.wait_for_everyone()

    def _records(self) -> list[dict[str, Any]]:
        return [json.loads(mark.read_text()) for mark in sorted(self._progress.glob("*.json"))]

    def _mark(self, shard: int) -> Path:
        return self._progress / f"{shard:08d}.json"


def _claim(folder: Path, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Refuses a folder as output that holds anything, unless ``overwrite`` and mfkit wrote it: then it is removed."""
    if folder.is_file():
        raise OutputError(f"{folder} is a file; give the name of a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{folder} exists; give --overwrite to replace it, or another name with -o")
    if folder.resolve() in {path.resolve() for path in inputs}:
        raise OutputError(f"{folder} is an input of this command; give another name with -o")
    if not _is_ours(folder):
        raise OutputError(f"{folder} was not written by mfkit, so --overwrite does not remove it")
    shutil.rmtree(folder)


def _is_ours(folder: Path) -> bool:
    try:
        return unfinished(folder) or open_artifact(folder).kind in FOLDER_KINDS
    except InputError:
        return False
