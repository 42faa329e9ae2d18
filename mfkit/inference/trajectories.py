"""trajectories: the teacher's ODE, every state with its true time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfkit.artifacts.artifact import open_artifact, provenance
from mfkit.autoencoders import weights
from mfkit.config.settings import TrajectorySettings
from mfkit.data.codecs import STORED, array_bytes
from mfkit.data.latents import latent_shape
from mfkit.data.prefetch import behind
from mfkit.data.sequence import row_ranges
from mfkit.data.shards import STREAM, write_standard_output
from mfkit.data.writer import Production
from mfkit.flow.random import Draws
from mfkit.flow.solvers import trajectory
from mfkit.flow.times import time_grid
from mfkit.inference.micro_batches import Passes
from mfkit.runtime.distributed import processes


@dataclass(frozen=True)
class _Solved:
    """Trajectories of some rows, states (B, S + 1, C, H, W) in the format to be stored; on the CPU."""

    shard: int
    rows: range
    labels: list[int]
    states: np.ndarray


def solve(teacher_path: Path, count: int, output: str, settings: TrajectorySettings, *, overwrite: bool) -> str | None:
    """Writes ``count`` trajectories, the classes in turn, as shards or as a stream on standard output.

    :returns: the output's path, for standard output; None for a stream.
    """
    teacher = open_artifact(teacher_path, kinds=("teacher",))
    network = weights.load_generator(teacher_path, "teacher").to(processes().device)
    shape, classes, device = latent_shape(teacher), network.config.classes, processes().device
    times = time_grid(settings.solver_steps, teacher.config["time_shift"], device)

    stored_times = array_bytes(times.cpu().numpy())

    passes = Passes(network.config.side**2, settings.precision, device)

    def path(noise: Tensor, labels: Tensor) -> Tensor:
        return trajectory(lambda z, t: network(z, t, labels), noise, times, settings.solver).transpose(0, 1)

    def solved(part: tuple[int, range]) -> _Solved:
        shard, rows = part
        noise = Draws(settings.seed, "trajectories", rows, device).normal("noise", shape)
        labels = torch.tensor([row % classes for row in rows], device=device)
        states = passes.run(path, rows, noise, labels).to(STORED[settings.dtype])
        return _Solved(shard, rows, labels.tolist(), states.cpu().numpy())

    def samples(parts: Iterable[_Solved]) -> Iterator[dict[str, Any]]:
        for part in parts:
            for row, label, states in zip(part.rows, part.labels, part.states, strict=True):
                yield {
                    "__key__": f"{row:09d}",
                    "states.npy": array_bytes(states),
                    "times.npy": stored_times,
                    "cls": str(label).encode(),
                }

    config = {"shape": list(shape), "classes": teacher.config["classes"], "trajectories": count}
    config |= settings.of_the_result()
    inputs = {"teacher": teacher, **teacher.mention("rae")}
    batches = row_ranges(count, settings.shard_size, passes.whole(settings.batch_size))
    parts = ((shard, rows[part]) for shard, rows in batches for part in passes.split(rows))
    if output == STREAM:
        record = provenance(Path.cwd(), inputs, seed=settings.seed)
        behind(
            lambda ready: write_standard_output("trajectories", config, record, samples(ready)),
            passes.each(solved, parts),
        )
        return None
    folder = Path(output)
    shards = -(-count // settings.shard_size)
    with Production(folder, inputs, config, overwrite=overwrite, shards=shards) as production:
        wanted = ((shard, rows) for shard, rows in parts if production.wanted(shard))

        def write(ready: Iterator[_Solved]) -> None:
            for shard, group in groupby(ready, key=lambda part: part.shard):
                production.write(shard, samples(group))

        behind(write, passes.each(solved, wanted))
        production.finish("trajectories", config, provenance(folder, inputs, seed=settings.seed))
    return output
