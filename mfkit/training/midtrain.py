"""midtrain: consistency mid-training (CMT) of a student on the teacher's trajectories."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from mfkit.artifacts.artifact import open_artifact
from mfkit.autoencoders import weights
from mfkit.config.settings import GeneratorSettings, MidtrainSettings, PresetName
from mfkit.data.latents import LatentSet, check_fit
from mfkit.data.loader import Batch
from mfkit.errors import InputError
from mfkit.flow.losses import Loss, chord_matching
from mfkit.flow.random import Draws
from mfkit.models.dit import AverageVelocityDiT, null_labels
from mfkit.runtime.seeding import seeded
from mfkit.training.plan import Plan


def plan(
    trajectories: LatentSet,
    teacher_path: Path,
    preset: PresetName,
    settings: GeneratorSettings,
    pairs: MidtrainSettings,
) -> Plan:
    """The mid-training of a student that starts as the teacher whose trajectories these are."""
    teacher = open_artifact(teacher_path, kinds=("teacher",))
    check_fit(trajectories, teacher)
    solved = trajectories.artifact.inputs.get("teacher")
    if solved and solved["digest"] != teacher.digest:
        raise InputError(f"{trajectories.artifact.path} was not solved by {teacher_path}, but by another teacher")
    network_of_teacher = weights.load_generator(teacher_path, "teacher")
    with seeded(settings.seed):  # the loading draws weights too, before it has them from the file
        network = AverageVelocityDiT.from_teacher(network_of_teacher)
    classes = network.config.classes

    def loss(net: nn.Module, batch: Batch) -> Loss:
        states, times, y = (batch.columns[name] for name in ("states", "times", "label"))
        draws = Draws(settings.seed, "midtrain", batch.positions, states.device)
        y = null_labels(y, classes, draws.uniform("class-dropout") < settings.label_drop)
        item = torch.arange(len(states), device=states.device).repeat_interleave(pairs.pairs)
        first, second = (draws.uniform(f"{name}-state", pairs.pairs).flatten() for name in ("first", "second"))
        to_data = draws.uniform("to-data", pairs.pairs).flatten() < pairs.to_data
        later, earlier = pair(first, second, states.shape[1], to_data)
        z_t, z_r = states[item, later].float(), states[item, earlier].float()
        return chord_matching(net, z_t, z_r, times[item, earlier], times[item, later], y[item])

    return Plan(
        kind="student",
        network=network,
        config={"time_shift": teacher.config["time_shift"], "classes": teacher.config["classes"], "preset": preset},
        source=trajectories.source,
        loss=loss,
        inputs={
            "teacher": teacher,
            "trajectories": trajectories.artifact,
            **teacher.mention("latents"),
            **teacher.mention("rae"),
        },
        settings=settings,
        other_settings=asdict(pairs),
        rows_per_item=pairs.pairs,
    )


def pair(uniform_a: Tensor, uniform_b: Tensor, states: int, to_data: Tensor) -> tuple[Tensor, Tensor]:
    """Two different states of a trajectory, every pair equally likely, from uniform draws (B,) in [0, 1).

    States stand in descending time, so the pair is (smaller index, larger index) = (later time, earlier time).
    Where ``to_data`` (B,) is true, the earlier state is the last one, the data.
    """
    first = (uniform_a * states).long()
    second = (uniform_b * (states - 1)).long()
    second = second + (second >= first)
    later = torch.where(to_data, (uniform_b * (states - 1)).long(), torch.minimum(first, second))
    return later, torch.where(to_data, states - 1, torch.maximum(first, second))
