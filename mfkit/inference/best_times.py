"""times: the best grid of times for a few steps of a teacher or a student, from stored trajectories."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfkit.artifacts.atomic import atomic_write, exclusive_output
from mfkit.artifacts.json_files import parse, read_json
from mfkit.data.dataset import IndexedTars, read_batch
from mfkit.data.latents import LatentDataset, check_fit, check_trajectories
from mfkit.errors import InputError, UsageError
from mfkit.flow.bellman import cheapest_path, step_costs
from mfkit.inference.guided import GuidedTeacher
from mfkit.models.files import GeneratorFile
from mfkit.runtime.distributed import processes

logger = logging.getLogger(__name__)

_AT_A_TIME = 32
"""Trajectories in one evaluation."""


@dataclass(frozen=True, kw_only=True)
class TimesFile:
    """A grid of times in a file."""

    times: list[float]
    """Descending, from 1 to 0."""
    cost: float
    """What its steps miss the trajectories by: the sum of their mean squared distances."""
    model: str
    """Digest of the generator that it was made for."""

    def __post_init__(self) -> None:
        descending = all(a > b for a, b in pairwise(self.times))
        if len(self.times) < 2 or (self.times[0], self.times[-1]) != (1, 0) or not descending:
            raise ValueError("its times do not descend from 1 to 0")


def read_times(path: Path, model: GeneratorFile) -> list[float]:
    """The grid in a file; warns where it was made for another generator than ``model``.

    :raises InputError: it is none, or its times do not descend from 1 to 0.
    """
    found = parse(TimesFile, read_json(path), path)
    if found.model != model.artifact.digest:
        logger.warning("%s was made for another generator than %s", path, model.path)
    return found.times


def write_times(
    guided: GuidedTeacher, data: LatentDataset, steps: int, count: int, output: Path, *, overwrite: bool
) -> str:
    """Writes the times of the stored states that so many steps should stop at.

    :param guided: the teacher that solved them, under the guidance that they were solved with, or a student.
    :param count: trajectories to take, from the first on.
    :raises InputError: the trajectories are of another teacher, guidance or kind of latents.
    """
    model = guided.file
    check_fit(data, model)
    if model.kind == "teacher":
        check_trajectories(data, model)
        solved = data.artifact.config.get("guidance", guided.conditions)  # those of others do not say
        if solved != guided.conditions:
            raise InputError(
                f"{data.artifact.path} was solved with guidance {solved}, not {guided.conditions}: give the same"
            )
    if not isinstance(data.dataset, IndexedTars):
        raise UsageError("times reads trajectories from a folder, not from a stream")
    with exclusive_output(output, overwrite=overwrite, suffix=".json"):
        costs, times = _costs(guided, data.dataset, min(count, len(data.dataset)))
        try:
            path = cheapest_path(costs, steps)
        except ValueError as error:
            raise UsageError(f"--steps: {error}") from error
        total = float(sum(costs[i, j] for i, j in pairwise(path)))
        found = {"times": [float(times[i]) for i in path], "cost": total, "model": model.artifact.digest}
        with atomic_write(output) as partial:
            partial.write_text(json.dumps(found, indent=2) + "\n")
    return str(output)


@torch.no_grad()
def _costs(guided: GuidedTeacher, dataset: IndexedTars, count: int) -> tuple[Tensor, Tensor]:
    """The mean costs of all steps, (S + 1, S + 1), and the times, (S + 1,)."""
    device, student = processes().device, guided.file.kind == "student"
    network = guided.file.network.to(device) if student else guided.velocity(device)
    total, times = torch.zeros(()), torch.zeros(0)
    for begin in range(0, count, _AT_A_TIME):
        indices = range(begin, min(begin + _AT_A_TIME, count))
        columns: dict[str, Any] = {name: value.to(device) for name, value in read_batch(dataset, indices).items()}
        states, times, y = columns["states"].float(), columns["times"][0], columns["label"]
        if not (columns["times"] == times).all():
            raise InputError(f"{dataset.artifact.path}: its trajectories do not share their times")
        slope = _slopes(student, network, states, times, y)
        total = total + len(indices) / count * step_costs(states, times, slope)
    return total, times


def _slopes(student: bool, network: Any, states: Tensor, times: Tensor, y: Tensor) -> Callable[[int, int], Tensor]:
    """What a step goes along: the teacher's velocity at its start, the student's average one between its ends."""
    batch = states.new_ones(len(states))

    @lru_cache(maxsize=1)
    def velocity(i: int) -> Tensor:
        return network(states[:, i], times[i] * batch, y)

    if not student:
        return lambda i, j: velocity(i)
    return lambda i, j: network(states[:, i], times[j] * batch, times[i] * batch, y)
