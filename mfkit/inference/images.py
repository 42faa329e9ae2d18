"""Jobs whose output is images: as PNG files by class, as shards, as a tar stream, as an ADM-style .npz, as a grid."""

from abc import abstractmethod
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor

from mfkit.artifacts.atomic import exclusive_output
from mfkit.data.codecs import png_bytes
from mfkit.data.grid import write_grid
from mfkit.data.writer import STREAM, TarSample
from mfkit.errors import UsageError
from mfkit.inference.output import Job, Result, write_folder, write_npz, write_stream
from mfkit.runtime.distributed import processes

SHARD_SIZE = 1000
"""Images per tar, and between two commits of a PNG folder."""
GRID_COLUMNS, GRID_IMAGES = 10, 100
"""Of a grid."""


class ImageJob(Job):
    """Makes images, (B, 3, S, S) uint8 in each result."""

    kind = "images"
    image_size: int
    """S."""
    class_names: list[str]
    count: int | None
    """How many images; None where that is not known before all are made."""

    @abstractmethod
    def grid_images(self) -> Tensor:
        """(N, 3, S, S) in [0, 1], for a grid of ten per row."""

    def pack(self, result: Result) -> list[TarSample]:
        return [
            {"__key__": f"{index:09d}", "png": png_bytes(image), "cls": str(label).encode()}
            for index, image, label in zip(result.indices, result.values, result.labels.tolist(), strict=True)
        ]


def write_images(job: ImageJob, output: str | None, *, tar: bool, grid: Path | None, overwrite: bool) -> str | None:
    """Writes what a job makes.

    :param output: a folder; a name that ends in ``.npz``; ``-`` for a tar stream on standard output; None where only a
        grid is wanted.
    :param tar: a folder of tar shards instead of PNG files.
    :param grid: where to write a grid of some of them.
    :returns: the line for standard output; None for a stream.
    """
    if output is None and grid is None:
        raise UsageError("nothing to write: pass -o, --grid, or both")
    if job.count is None and (grid or str(output).endswith(".npz")):
        raise UsageError("a grid or an .npz is of a known number of images, not of a stream: give a folder of latents")
    with exclusive_output(grid, overwrite=overwrite, suffix=".png") if grid else nullcontext():
        if grid and processes().is_main_process:
            write_grid(grid, job.grid_images(), GRID_COLUMNS)
        if output == STREAM:
            write_stream(job)
        elif output and output.endswith(".npz"):
            assert job.count is not None
            write_npz(job, Path(output), job.count, job.image_size, overwrite=overwrite)
        elif output:
            write_folder(job, Path(output), overwrite=overwrite, as_images=None if tar else job.class_names)
    return None if output == STREAM else output or str(grid)
