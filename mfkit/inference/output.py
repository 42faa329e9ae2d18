"""The one skeleton of encode, trajectories and sample: micro-batches in, samples out, as shards, stream or images.

A job says what is computed and how a result becomes samples; what is written, resumed and shared among processes is the
same for all. Computing and writing go on at the same time.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from mfkit.artifacts.artifact import Artifact, digest, record_provenance
from mfkit.artifacts.atomic import atomic_write, exclusive_output, output_is_complete, sync_files
from mfkit.data.images import folder_names
from mfkit.data.npz import NpzWriter
from mfkit.data.prefetch import in_background, ordered_map
from mfkit.data.skip import SkipPolicy
from mfkit.data.writer import STREAM, FolderWriter, ShardRecord, TarSample, write_standard_output
from mfkit.runtime.distributed import processes


@dataclass(frozen=True)
class Result:
    """What came of a micro-batch, on the CPU."""

    shard: int
    indices: Sequence[int]
    values: Any
    """(B, ...), such as images (B, 3, S, S) uint8."""
    labels: Tensor
    """(B,)."""


class Job(ABC):
    """What a command computes."""

    kind: ClassVar[str]
    """Of the output: latents, trajectories, images."""
    inputs: dict[str, Artifact]
    resume_key: dict[str, Any]
    """Settings that an interrupted run must share with the one that goes on."""
    seed: int | None = None
    skips: SkipPolicy | None = None
    """Of the samples that it reads; None where it reads none."""
    num_shards: int | None = None
    """None where that is not known before all is read."""
    pack_threads: int = 0
    """Threads that make samples of results; 0 is the one that writes."""

    @abstractmethod
    def results(self, is_mine: Callable[[int], bool]) -> Iterator[Result]:
        """Computes the shards of this process, in order."""

    @abstractmethod
    def pack(self, result: Result) -> list[TarSample]:
        """A result as samples of a tar."""

    @abstractmethod
    def describe(self, records: list[ShardRecord] | None) -> dict[str, Any]:
        """The config of the output.

        :param records: what all processes wrote; None for a stream, which is described before it is computed.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """What the record of the output says: all that it depends on."""
        return {name: value for name, value in self.resume_key.items() if name != "class_names"}

    def skipped(self, shard: int) -> Mapping[int, str]:
        """Why samples are missing from a shard, by their index."""
        return {}

    def report_skipped(self) -> None:
        """Says what was skipped. All processes call it."""
        if self.skips is not None:
            self.skips.report()


def write_stream(job: Job) -> None:
    """One tar on standard output."""
    provenance = record_provenance(Path.cwd(), job.inputs, seed=job.seed, settings=job.settings)

    def write(results: Iterator[Result]) -> None:
        samples = (sample for _, packed in _packed(job, results) for sample in packed)
        write_standard_output(job.kind, job.describe(None), provenance, samples)

    in_background(write, job.results(lambda shard: True))
    job.report_skipped()


def write_folder(job: Job, folder: Path, *, overwrite: bool, as_images: list[str] | None = None) -> None:
    """Shards with an index, or image files in a subfolder per class.

    :param as_images: names of the classes, for image files.
    """
    resume_key = job.resume_key | {"files": as_images is not None}
    names = folder_names(as_images) if as_images is not None else []
    with FolderWriter(folder, job.inputs, resume_key, overwrite=overwrite, shards=job.num_shards) as writer:

        def write(results: Iterator[Result]) -> None:
            for shard, group in groupby(_packed(job, results), key=lambda item: item[0]):
                samples = (sample for _, packed in group for sample in packed)
                if as_images is None:
                    writer.write(shard, samples, partial(job.skipped, shard))
                else:
                    writer.commit_files(shard, _write_images(folder, names, samples))

        in_background(write, job.results(writer.is_mine))
        records = writer.records()
        config = job.describe(records)
        provenance = record_provenance(folder, job.inputs, seed=job.seed, settings=job.settings)
        writer.finish(job.kind, config, provenance, records)
    job.report_skipped()


def _write_images(folder: Path, names: list[str], samples: Iterable[TarSample]) -> dict[str, str]:
    """Writes PNG files: their digests by their paths in the folder."""
    files = {}
    for sample in samples:
        name = f"{names[int(sample['cls'])]}/{sample['__key__']}.png"
        with atomic_write(folder / name, sync=False) as partial:
            partial.write_bytes(sample["png"])
        files[name] = digest(sample["png"])
    sync_files([folder / name for name in files])
    return files


def write_npz(job: Job, path: Path, count: int, size: int, *, overwrite: bool) -> None:
    """Images in one file in ADM's layout, which processes write together."""
    world = processes()
    with exclusive_output(path, overwrite=overwrite), NpzWriter(path, count, size) as writer:

        def write(results: Iterator[Result]) -> None:
            for result in results:
                writer.put(range(result.indices[0], result.indices[-1] + 1), result.values, result.labels)

        in_background(write, job.results(lambda shard: shard % world.num_processes == world.process_index))
        provenance = record_provenance(path.parent, job.inputs, seed=job.seed, settings=job.settings)
        writer.finish(job.describe(None), provenance)
        output_is_complete()
    job.report_skipped()


def write_shards_or_stream(job: Job, output: str, *, overwrite: bool) -> str | None:
    """Writes to a folder, or to standard output for ``-``.

    :returns: the line for standard output; None for a stream.
    """
    if output == STREAM:
        write_stream(job)
        return None
    write_folder(job, Path(output), overwrite=overwrite)
    return output


def _packed(job: Job, results: Iterable[Result]) -> Iterator[tuple[int, list[TarSample]]]:
    return ordered_map(lambda result: (result.shard, job.pack(result)), results, job.pack_threads)
