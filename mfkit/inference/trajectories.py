"""trajectories: the teacher's ODE, every state with its true time."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mfkit.config.settings import TrajectorySettings
from mfkit.data.codecs import DTYPES, array_bytes
from mfkit.data.writer import ShardRecord, TarSample
from mfkit.flow.random import Draws
from mfkit.flow.solvers import solve, time_grid
from mfkit.inference.guided import GuidedTeacher
from mfkit.inference.micro_batches import MicroBatches
from mfkit.inference.output import Job, Result
from mfkit.runtime.distributed import processes


class Trajectories(Job):
    """Solves ``count`` trajectories, the classes in turn."""

    kind = "trajectories"

    def __init__(self, guided: GuidedTeacher, count: int, settings: TrajectorySettings) -> None:
        self.device, teacher = processes().device, guided.file
        self._shape, self._num_classes, self._count = teacher.latent_shape, teacher.num_classes, count
        self._settings, self._class_names = settings, teacher.description.class_names
        self._preset = teacher.description.preset
        self.velocity, self.solver = guided.velocity(self.device), settings.solver
        self.times = time_grid(
            settings.solver_steps, teacher.description.time_shift, self.device, name=settings.time_grid
        )
        self._stored_times = array_bytes(self.times.cpu().numpy())
        self._micro_batches = MicroBatches(self._shape[1] * self._shape[2], settings.precision, self.device)
        self.inputs = {**guided.inputs, **teacher.artifact.reference("rae")}
        self.seed, self.num_shards = settings.seed, -(-count // settings.shard_size)
        self.resume_key = settings.resume_key() | {"trajectories": count, "guidance": guided.conditions}

    def results(self, is_mine: Callable[[int], bool]) -> Iterator[Result]:
        size, batch_size = self._settings.shard_size, self._settings.batch_size
        return self._micro_batches.map_ranges(
            self._solve, self._count, shard_size=size, batch_size=batch_size, is_mine=is_mine
        )

    def _solve(self, part: tuple[int, range]) -> Result:
        shard, indices = part
        start, labels = self.start(indices)
        states = self._micro_batches.evaluate(self.states, indices, start, labels)
        return Result(shard, indices, states.to(DTYPES[self._settings.dtype]).cpu().numpy(), labels.cpu())

    def start(self, indices: range) -> tuple[Tensor, Tensor]:
        """Where these trajectories start, (B, C, H, W), and their labels, (B,)."""
        noise = Draws(self._settings.seed, "trajectories", indices, self.device).normal("noise", self._shape)
        return noise, torch.tensor([index % self._num_classes for index in indices], device=self.device)

    def states(self, start: Tensor, labels: Tensor) -> Tensor:
        """All states from noise to data, (B, S + 1, C, H, W)."""
        return solve(lambda z, t: self.velocity(z, t, labels), start, self.times, self.solver).transpose(0, 1)

    def pack(self, result: Result) -> list[TarSample]:
        return [
            {
                "__key__": f"{index:09d}",
                "states.npy": array_bytes(states),
                "times.npy": self._stored_times,
                "cls": str(label).encode(),
            }
            for index, label, states in zip(result.indices, result.labels.tolist(), result.values, strict=True)
        ]

    def describe(self, records: list[ShardRecord] | None) -> dict[str, Any]:
        own = {"shape": list(self._shape), "class_names": self._class_names, "preset": self._preset}
        return own | self.resume_key
