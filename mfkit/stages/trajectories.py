"""trajectories: the teacher's ODE, every state with its true time."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, starmap
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfkit.data.codecs import STORED, array_bytes
from mfkit.data.prefetch import behind
from mfkit.data.production import Production
from mfkit.data.sequence import row_ranges
from mfkit.data.shards import STREAM, write_standard_output
from mfkit.files import weights
from mfkit.files.artifact import open_artifact, provenance
from mfkit.precision import evaluating
from mfkit.processes import processes
from mfkit.settings import TrajectorySettings
from mfkit.solvers.noise import draw_rows
from mfkit.solvers.ode import trajectory
from mfkit.solvers.times import time_grid
from mfkit.stages.inputs import latent_shape


@dataclass(frozen=True)
class _Solved:
    """Trajectories of a batch, states (B, S + 1, C, H, W) in the format to be stored; on the CPU."""

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

    def solved(shard: int, rows: range) -> _Solved:
        with evaluating(settings.precision, device):
            _, noise = draw_rows(settings.seed, "trajectories", rows, shape, device=device)
            labels = torch.tensor([row % classes for row in rows], device=device)
            states = trajectory(lambda z, t: network(z, t, labels), noise, times, settings.solver)
            stored = states.to(STORED[settings.dtype]).cpu().transpose(0, 1).numpy()  # (B, S + 1, C, H, W)
        return _Solved(shard, rows, labels.tolist(), stored)

    def samples(parts: Iterable[_Solved]) -> Iterator[dict[str, Any]]:
        for part in parts:
            for row, label, path in zip(part.rows, part.labels, part.states, strict=True):
                yield {
                    "__key__": f"{row:09d}",
                    "states.npy": array_bytes(path),
                    "times.npy": stored_times,
                    "cls": str(label).encode(),
                }

    config = {"shape": list(shape), "classes": teacher.config["classes"], "trajectories": count, **asdict(settings)}
    inputs = {"teacher": teacher, **teacher.mention("rae")}
    parts = row_ranges(count, settings.shard_size, settings.batch_size)
    if output == STREAM:
        record = provenance(Path.cwd(), inputs, seed=settings.seed)
        behind(
            lambda ready: write_standard_output("trajectories", config, record, samples(ready)), starmap(solved, parts)
        )
        return None
    folder = Path(output)
    shards = -(-count // settings.shard_size)
    with Production(folder, inputs, config, overwrite=overwrite, shards=shards) as production:
        wanted = ((shard, rows) for shard, rows in parts if production.wanted(shard))

        def write(ready: Iterator[_Solved]) -> None:
            for shard, group in groupby(ready, key=lambda part: part.shard):
                production.write(shard, samples(group))

        behind(write, starmap(solved, wanted))
        production.finish("trajectories", config, provenance(folder, inputs, seed=settings.seed))
    return output
