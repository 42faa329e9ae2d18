"""sample: pictures from noise, as a PNG folder, shards, a tar stream or an ADM-style .npz, and as a grid."""

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mfkit.artifacts.artifact import Artifact, digest, open_artifact, provenance
from mfkit.artifacts.atomic import claimed, sync_files, whole_file
from mfkit.autoencoders import weights
from mfkit.autoencoders.rae import RAE
from mfkit.autoencoders.vae import VAE
from mfkit.config.settings import PrecisionName
from mfkit.data.codecs import png_bytes, to_uint8
from mfkit.data.figures import write_grid
from mfkit.data.images import folder_names
from mfkit.data.latents import AUTOENCODERS, check_decodes, check_same_rae, follow, latent_shape
from mfkit.data.npz import NpzWriter
from mfkit.data.prefetch import behind, in_order, spare_threads
from mfkit.data.sequence import row_ranges
from mfkit.data.shards import STREAM, write_standard_output
from mfkit.data.writer import Production
from mfkit.errors import UsageError
from mfkit.flow.random import Draws
from mfkit.flow.solvers import Solver, evaluations
from mfkit.inference.generate import default_steps, pictures
from mfkit.inference.micro_batches import Passes
from mfkit.models.dit import DiT, VelocityDiT
from mfkit.runtime.distributed import processes

logger = logging.getLogger(__name__)

SHARD_SIZE = 1000
"""Pictures per tar, and between two marks of progress in a PNG folder."""
_GRID_COLUMNS = 10


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """Which pictures to draw, and how."""

    count: int
    nfe: int | None
    """Network evaluations per image; None is 1 for a student, and 50 (Heun: 49) for a teacher."""
    solver: Solver | None = None
    """Of a teacher's ODE; None is Euler's."""
    labels: str = "equal"
    """``equal``: the classes in turn; ``random``; or class indices such as ``0,3,7``, in turn."""
    seed: int = 0
    time_shift: float | None = None
    """Of the grid of times; None is the model's own for a teacher's ODE and 1 for a student's jumps, as published."""
    batch_size: int = 100
    """Rows per forward pass; on a CPU in whole passes."""
    precision: PrecisionName = "float32"


class Sampler:
    """A generator with its RAE. Picture i depends on the seed and i alone; on GPUs up to rounding."""

    def __init__(self, model: Path, rae: Path | None, request: SampleRequest) -> None:
        self.device = processes().device
        self.model = open_artifact(model, kinds=("teacher", "student"))
        self.rae_artifact = open_artifact(Path(follow(rae, self.model, "rae", "--rae")), kinds=AUTOENCODERS)
        check_same_rae(self.model, self.rae_artifact)
        check_decodes(self.rae_artifact, latent_shape(self.model), model)
        self.network: DiT = weights.load_generator(model, "teacher", "student").to(self.device)
        side = self.network.config.side
        self.rae: RAE | VAE = weights.load_autoencoder(self.rae_artifact, side=side).to(self.device)
        self.request = request
        self.steps = _steps(self.network, request)
        own = self.model.config["time_shift"] if isinstance(self.network, VelocityDiT) else 1.0
        self.time_shift: float = request.time_shift or own
        self.classes: list[str] = self.model.config["classes"]
        self._choices = _choices(request.labels, len(self.classes))
        self._passes = Passes(side**2, request.precision, self.device)
        self.batch_size = self._passes.whole(request.batch_size)

    def describe(self) -> dict[str, Any]:
        """The conditions of the pictures, for the index and for metrics."""
        solver = (self.request.solver or "euler") if isinstance(self.network, VelocityDiT) else "mean-flow"
        return {
            "images": self.request.count,
            "size": self.rae.config.image_size,
            "classes": self.classes,
            "model": self.model.kind,
            "model_digest": self.model.digest,
            "nfe": evaluations(self.steps, "heun" if solver == "heun" else "euler"),
            "solver": solver,
            "time_shift": self.time_shift,
            "labels": self.request.labels,
            "seed": self.request.seed,
            "precision": self.request.precision,
            "guidance": None,
        }

    def draw(self, batches: Iterable[tuple[int, range]]) -> "Iterator[Drawn]":
        """The pictures of these rows, in order, each part of a batch with the batch's number."""
        parts = ((number, rows[part]) for number, rows in batches for part in self._passes.split(rows))
        return self._passes.each(self._drawn, parts)

    def _drawn(self, part: tuple[int, range]) -> "Drawn":
        number, rows = part
        config = self.network.config
        shape = (config.channels, config.side, config.side)
        draws = Draws(self.request.seed, "sample", rows, self.device)
        noise = draws.normal("noise", shape)
        if self._choices is None:
            labels = (draws.uniform("label") * len(self.classes)).long()
        else:
            labels = torch.tensor([self._choices[row % len(self._choices)] for row in rows], device=self.device)
        images = self._passes.run(self._pictures, rows, noise, labels)
        return Drawn(number, rows, to_uint8(images.float()).cpu(), labels.cpu())

    def _pictures(self, noise: Tensor, labels: Tensor) -> Tensor:
        return pictures(
            self.network, self.rae, noise, labels, steps=self.steps, shift=self.time_shift,
            solver=self.request.solver or "euler",
        )  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """Pictures (B, 3, S, S) uint8 and labels (B,) of some rows, on the CPU."""

    batch: int
    rows: range
    images: Tensor
    labels: Tensor

    def samples(self) -> list[dict[str, Any]]:
        """As members of shards: the pictures as PNG."""
        return [
            {"__key__": f"{row:09d}", "png": png_bytes(image), "cls": str(label).encode()}
            for row, image, label in zip(self.rows, self.images, self.labels.tolist(), strict=True)
        ]


def sample(sampler: Sampler, output: str | None, *, tar: bool, grid: Path | None, overwrite: bool) -> str | None:
    """Writes the pictures.

    :param output: a folder; a name that ends in ``.npz``; ``-`` for a tar stream on standard output.
    :param tar: a folder of tar shards instead of PNG files.
    :param grid: where to write a grid of the first pictures, at most ten per row.
    :returns: the output's path, for standard output; None for a stream.
    """
    with claimed(grid, overwrite=overwrite, suffix=".png") if grid else nullcontext():
        if output == STREAM:
            _write_stream(sampler)
        elif output and output.endswith(".npz"):
            _write_npz(sampler, Path(output), overwrite)
        elif output:
            _write_folder(sampler, Path(output), tar, overwrite)
        if grid and processes().is_main_process:
            shown = min(sampler.request.count, _GRID_COLUMNS**2)
            parts = sampler.draw(row_ranges(shown, shown, sampler.batch_size))
            write_grid(grid, torch.cat([part.images for part in parts]).float() / 255, _GRID_COLUMNS)
    return None if output == STREAM else output or str(grid)


def _inputs(sampler: Sampler) -> dict[str, Artifact]:
    return {"model": sampler.model, "rae": sampler.rae_artifact}


def _packed(drawn: Iterator[Drawn]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(batch, samples) of each part; PNGs are made by the cores that are left."""
    return in_order(lambda part: (part.batch, part.samples()), drawn, spare_threads())


def _write_stream(sampler: Sampler) -> None:
    record = provenance(Path.cwd(), _inputs(sampler), seed=sampler.request.seed)
    parts = row_ranges(sampler.request.count, sampler.batch_size, sampler.batch_size)

    def write(drawn: Iterator[Drawn]) -> None:
        stream = (sample for _, samples in _packed(drawn) for sample in samples)
        write_standard_output("images", sampler.describe(), record, stream)

    behind(write, sampler.draw(parts))


def _write_folder(sampler: Sampler, folder: Path, tar: bool, overwrite: bool) -> None:
    request, config, names = sampler.request, sampler.describe(), folder_names(sampler.classes)
    shards = -(-request.count // SHARD_SIZE)
    with Production(folder, _inputs(sampler), config | {"tar": tar}, overwrite=overwrite, shards=shards) as production:
        parts = row_ranges(request.count, SHARD_SIZE, sampler.batch_size)
        wanted = [(shard, rows) for shard, rows in parts if production.wanted(shard)]

        def write(drawn: Iterator[Drawn]) -> None:
            for shard, group in groupby(_packed(drawn), key=lambda item: item[0]):
                samples = (sample for _, batch in group for sample in batch)
                if tar:
                    production.write(shard, samples)
                    continue
                files = {}
                for item in samples:
                    name = f"{names[int(item['cls'])]}/{item['__key__']}.png"
                    with whole_file(folder / name, sync=False) as partial:
                        partial.write_bytes(item["png"])
                    files[name] = digest(item["png"])
                sync_files([folder / name for name in files])
                production.mark_files(shard, files)

        behind(write, sampler.draw(_progress(wanted)))
        record = provenance(folder, _inputs(sampler), seed=request.seed)
        production.finish("images", config, record)


def _write_npz(sampler: Sampler, path: Path, overwrite: bool) -> None:
    request, size = sampler.request, sampler.rae.config.image_size
    state = processes()
    parts = row_ranges(request.count, sampler.batch_size, sampler.batch_size)
    own = [(part, rows) for part, rows in parts if part % state.num_processes == state.process_index]
    with claimed(path, overwrite=overwrite), NpzWriter(path, request.count, size) as writer:

        def write(drawn: Iterator[Drawn]) -> None:
            for batch in drawn:
                writer.put(batch.rows, batch.images, batch.labels)

        behind(write, sampler.draw(_progress(own)))
        writer.finish(sampler.describe())


def _progress(parts: list) -> tqdm:
    shown = processes().is_main_process and sys.stderr.isatty() and logger.isEnabledFor(logging.WARNING)
    return tqdm(parts, disable=not shown, unit="batch")


def _steps(network: DiT, request: SampleRequest) -> int:
    if not isinstance(network, VelocityDiT):
        if request.solver is not None:
            raise UsageError("--solver is for a teacher's ODE; a student jumps")
        return request.nfe or default_steps(network)
    if request.solver == "heun":
        if request.nfe is None:
            return default_steps(network) // 2
        if request.nfe % 2 == 0:
            raise UsageError(
                f"Heun's method takes two evaluations a step, and one in the last: --nfe {request.nfe} is even"
            )
        return (request.nfe + 1) // 2
    return request.nfe or default_steps(network)


def _choices(labels: str, classes: int) -> list[int] | None:
    """The classes to draw in turn; None for random ones."""
    if labels == "random":
        return None
    if labels == "equal":
        return list(range(classes))
    try:
        chosen = [int(part) for part in labels.split(",")]
    except ValueError as error:
        raise UsageError(f"--labels {labels}: give equal, random, or class indices such as 0,3,7") from error
    for label in chosen:
        if not 0 <= label < classes:
            raise UsageError(f"--labels {labels}: class {label} is outside 0 to {classes - 1}")
    return chosen
