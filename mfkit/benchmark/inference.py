"""The stages that run frozen networks, by their own jobs and into files, and the loader of latents."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from mfkit.benchmark.machine import seconds
from mfkit.benchmark.networks import Networks
from mfkit.benchmark.result import figures
from mfkit.config.presets import resolve, resolve_training
from mfkit.config.settings import EncodeSettings, SampleSettings, TrajectorySettings
from mfkit.data.codecs import array_bytes
from mfkit.data.latents import open_latents
from mfkit.data.loader import BatchSharding, train_batches
from mfkit.data.writer import ShardRecord, TarSample
from mfkit.errors import UsageError
from mfkit.flow.objectives import OBJECTIVES, Stage
from mfkit.flow.solvers import SOLVERS
from mfkit.inference.encode import Encoding
from mfkit.inference.guided import GuidedTeacher
from mfkit.inference.output import Job, Result, write_folder
from mfkit.inference.sample import Sampling
from mfkit.inference.trajectories import Trajectories
from mfkit.runtime.distributed import processes
from mfkit.training.generator import training_order

_LOADER_BYTES = 2**28
"""Of latents that the loader reads."""
_WRITTEN_BYTES = 2**22
"""Of latents that are made at a time for it."""


def measure_files(stage: str, networks: Networks) -> dict[str, Any]:
    """A batch a round, after one that is not timed; networks are loaded before the clock runs."""
    if processes().num_processes > 1:
        raise UsageError("stages that write files are measured in one process")
    taken = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        job, flops = _JOBS[stage](networks, folder)
        for number in range(1 + networks.settings.rounds):
            taken.append(seconds(partial(write_folder, job(), folder / str(number), overwrite=False)))
    return figures(networks.rows, taken[1:], flops=networks.rows * flops)


def _encode(networks: Networks, folder: Path) -> tuple[Callable[[], Job], float]:
    preset, size = networks.settings.preset, networks.rae.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (networks.rows, size, size, 3), np.uint8)
    np.savez(folder / "images.npz", arr_0=pixels)
    settings = resolve(EncodeSettings, "encode", preset, _flags(networks))
    rae, images = networks.saved_rae(folder), str(folder / "images.npz")
    return lambda: Encoding(images, rae, size, preset, settings, mirror=False, workers=4), networks.encoder_flops()


def _trajectories(networks: Networks, folder: Path) -> tuple[Callable[[], Job], float]:
    settings = resolve(TrajectorySettings, "trajectories", networks.settings.preset, _flags(networks))
    teacher = networks.saved_generator(folder, "teacher")
    one = SOLVERS[settings.solver].evaluations(settings.solver_steps) * networks.flops("teacher")
    return lambda: Trajectories(GuidedTeacher(teacher), networks.rows, settings), one


def _sample(networks: Networks, folder: Path) -> tuple[Callable[[], Job], float]:
    settings = resolve(SampleSettings, "sample", networks.settings.preset, _flags(networks))
    student, rae = networks.saved_generator(folder, "student"), networks.saved_rae(folder)
    one = networks.flops("student") + networks.decoder_flops()
    return lambda: Sampling(GuidedTeacher(student), rae, networks.rows, settings), one


_JOBS = {"encode": _encode, "trajectories": _trajectories, "sample": _sample}
"""By the stage: a folder for its inputs -> what makes the job of a round, and the operations of one sample."""


def _flags(networks: Networks) -> dict[str, Any]:
    return {"batch_size": networks.rows, "precision": networks.settings.precision}


def measure_loader(networks: Networks) -> dict[str, Any]:
    """Batches of latents from shards in the page cache, as a training reads them: shuffled, or by class."""
    asked = networks.settings
    stage: Stage = OBJECTIVES[asked.objective].stages[0] if asked.objective else "train-teacher"
    settings, objective = resolve_training(stage, asked.preset, {"objective": asked.objective})
    group = objective.class_group
    one = networks.random_latents(1).nbytes
    rows = group or networks.rows
    count = max(4 * rows, min(20_000, _LOADER_BYTES // one))
    steps = count // rows
    with TemporaryDirectory() as name:
        classes = count // group if group else networks.config.num_classes
        write_folder(_RandomLatents(networks, count, classes), Path(name) / "latents", overwrite=False)
        order = training_order(objective, open_latents("latents", str(Path(name) / "latents")), classes)
        sharding = BatchSharding(1, 1) if group else BatchSharding(rows, rows)

        def read() -> None:
            for _ in train_batches(order, sharding, first_step=0, last_step=steps, seed=0, workers=settings.workers):
                pass

        taken = [seconds(read) for _ in range(1 + asked.rounds)]
    samples = steps * rows
    return figures(samples, taken[1:], bytes_read=samples * one, workers=settings.workers, class_group=group)


class _RandomLatents(Job):
    kind = "latents"
    num_shards = 1

    def __init__(self, networks: Networks, count: int, classes: int) -> None:
        self._networks, self._count, self._class_names = networks, count, networks.class_names[:classes]
        self.inputs, self.resume_key = {}, {}

    def results(self, is_mine: Callable[[int], bool]) -> Iterator[Result]:
        rows = max(1, _WRITTEN_BYTES // self._networks.random_latents(1).nbytes)
        for indices in torch.arange(self._count).split(rows):
            labels = indices % len(self._class_names)
            yield Result(0, indices.tolist(), self._networks.random_latents(len(indices)).numpy(), labels)

    def pack(self, result: Result) -> list[TarSample]:
        return [
            {"__key__": f"{index:09d}", "latent.npy": array_bytes(latent), "cls": str(label).encode()}
            for index, latent, label in zip(result.indices, result.values, result.labels.tolist(), strict=True)
        ]

    def describe(self, records: list[ShardRecord] | None) -> dict[str, Any]:
        return {"shape": list(self._networks.config.latent_shape), "class_names": self._class_names}
