"""trajectories: the teacher's ODE, every state with its true time."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mfkit.config.settings import TrajectorySettings
from mfkit.data.codecs import DTYPES, array_bytes
from mfkit.data.writer import ShardRecord, TarSample
from mfkit.flow.guidance import Guidance
from mfkit.flow.random import Draws
from mfkit.flow.solvers import solve_ode, time_grid
from mfkit.inference.micro_batches import MicroBatches
from mfkit.inference.output import Job, Result
from mfkit.models.files import GeneratorFile
from mfkit.runtime.distributed import processes


class Trajectories(Job):
    """Solves ``count`` trajectories, the classes in turn."""

    kind = "trajectories"

    def __init__(self, teacher: GeneratorFile, count: int, settings: TrajectorySettings, guidance: Guidance) -> None:
        self._device = processes().device
        network = teacher.network.to(self._device)
        self._shape, self._num_classes, self._count = teacher.latent_shape, teacher.num_classes, count
        self._settings, self._class_names = settings, teacher.description.class_names
        self._velocity = guidance.guided(network, teacher.num_classes, teacher.description.class_dropout)
        self._times = time_grid(
            settings.solver_steps, teacher.description.time_shift, self._device, name=settings.time_grid
        )
        self._stored_times = array_bytes(self._times.cpu().numpy())
        self._micro_batches = MicroBatches(self._shape[1] * self._shape[2], settings.precision, self._device)
        self.inputs = {"teacher": teacher.artifact, **teacher.artifact.reference("rae")}
        self.seed, self.num_shards = settings.seed, -(-count // settings.shard_size)
        self.resume_key = settings.resume_key() | {"trajectories": count, "guidance": guidance.conditions}

    def results(self, is_mine: Callable[[int], bool]) -> Iterator[Result]:
        size, batch_size = self._settings.shard_size, self._settings.batch_size
        return self._micro_batches.map_ranges(
            self._solve, self._count, shard_size=size, batch_size=batch_size, is_mine=is_mine
        )

    def _solve(self, part: tuple[int, range]) -> Result:
        shard, indices = part
        noise = Draws(self._settings.seed, "trajectories", indices, self._device).normal("noise", self._shape)
        labels = torch.tensor([index % self._num_classes for index in indices], device=self._device)
        states = self._micro_batches.evaluate(self._states, indices, noise, labels)
        return Result(shard, indices, states.to(DTYPES[self._settings.dtype]).cpu().numpy(), labels.cpu())

    def _states(self, noise: Tensor, labels: Tensor) -> Tensor:
        """(B, S + 1, C, H, W)."""
        states = solve_ode(lambda z, t: self._velocity(z, t, labels), noise, self._times, self._settings.solver)
        return states.transpose(0, 1)

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
        return {"shape": list(self._shape), "class_names": self._class_names} | self.resume_key
