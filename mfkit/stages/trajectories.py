"""trajectories: the teacher's ODE, every state with its true time."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from mfkit.data.codecs import array_bytes
from mfkit.data.production import Production
from mfkit.data.sequence import row_ranges
from mfkit.data.shards import STREAM, write_standard_output
from mfkit.files import weights
from mfkit.files.artifact import open_artifact, provenance
from mfkit.processes import processes
from mfkit.settings import TrajectorySettings
from mfkit.solvers.noise import draw_rows
from mfkit.solvers.ode import trajectory
from mfkit.solvers.times import time_grid
from mfkit.stages.inputs import latent_shape


def solve(teacher_path: Path, count: int, output: str, settings: TrajectorySettings, *, overwrite: bool) -> str | None:
    """Writes ``count`` trajectories, the classes in turn, as shards or as a stream on standard output.

    :returns: the output's path, for standard output; None for a stream.
    """
    teacher = open_artifact(teacher_path, kinds=("teacher",))
    network = weights.load_generator(teacher_path, "teacher").to(processes().device)
    shape, classes, device = latent_shape(teacher), network.config.classes, processes().device
    times = time_grid(settings.solver_steps, teacher.config["time_shift"], device)

    @torch.no_grad()
    def samples(rows: range) -> Iterator[dict[str, Any]]:
        _, noise = draw_rows(settings.seed, "trajectories", rows, shape, device=device)
        labels = torch.tensor([row % classes for row in rows], device=device)
        states = trajectory(lambda z, t: network(z, t, labels), noise, times, settings.solver)  # (S + 1, B, C, H, W)
        stored = states.transpose(0, 1).cpu().numpy().astype(settings.dtype)
        for row, label, path in zip(rows, labels.tolist(), stored, strict=True):
            yield {
                "__key__": f"{row:09d}",
                "states.npy": array_bytes(path),
                "times.npy": array_bytes(times.cpu().numpy()),
                "cls": str(label).encode(),
            }

    config = {"shape": list(shape), "classes": teacher.config["classes"], "trajectories": count, **asdict(settings)}
    inputs = {"teacher": teacher, **teacher.mention("rae")}
    parts = row_ranges(count, settings.shard_size, settings.batch_size)
    if output == STREAM:
        record = provenance(Path.cwd(), inputs, seed=settings.seed)
        stream = (sample for _, rows in parts for sample in samples(rows))
        write_standard_output("trajectories", config, record, stream)
        return None
    folder = Path(output)
    with Production(folder, inputs, config, overwrite=overwrite) as production:
        for shard, group in groupby(parts, key=lambda part: part[0]):
            if production.wanted(shard):
                production.write(shard, (sample for _, rows in group for sample in samples(rows)))
        production.finish("trajectories", config, provenance(folder, inputs, seed=settings.seed))
    return output
