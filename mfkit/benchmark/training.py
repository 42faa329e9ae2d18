"""Steps of the training stages, optimiser and EMA included, on samples that are in memory."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from mfkit.benchmark.machine import seconds
from mfkit.benchmark.networks import Networks
from mfkit.benchmark.result import figures
from mfkit.config.presets import resolve, resolve_training
from mfkit.config.settings import TrajectorySettings
from mfkit.data.loader import Batch
from mfkit.errors import UsageError
from mfkit.flow.objectives import Objective, Stage
from mfkit.inference.guided import frozen_velocity
from mfkit.models.generator import GeneratorKind
from mfkit.runtime.distributed import processes
from mfkit.runtime.precision import matmul_precision
from mfkit.training.generator import generator_loss, models_of
from mfkit.training.train_state import TrainState

_WARM_UP = 2


def measure_training(stage: Stage, networks: Networks) -> dict[str, Any]:
    asked, world = networks.settings, processes()
    steps = _WARM_UP + asked.rounds
    flags = {
        "batch_size": networks.rows, "steps": steps, "precision": asked.precision, "compile": asked.compile,
        "activation_checkpointing": asked.activation_checkpointing,
    }  # fmt: skip
    settings, objective = resolve_training(stage, asked.preset, flags | {"objective": asked.objective})
    if objective.spaces:
        raise UsageError(f"--objective {objective.name} needs an RAE and real images, which bench does not have")
    if networks.rows % objective.rows_per_sample:
        raise UsageError(
            f"--batch-size {networks.rows} does not divide by the {objective.rows_per_sample} rows of a sample"
        )
    kind: GeneratorKind = "teacher" if stage == "train-teacher" else "student"
    network, velocity = networks.build(kind), None
    if stage == "distill":
        velocity = frozen_velocity(networks.build("teacher"), world.device, compiled=asked.compile)
    models = models_of(network, velocity)
    models = replace(models, state=objective.initial_state(models))
    loss = generator_loss(stage, network, models, objective, settings, networks.time_shift)
    samples = networks.rows // objective.rows_per_sample
    columns = _columns(networks, objective, samples)
    train_state = TrainState(network, network.blocks, settings)
    taken = []
    with matmul_precision(asked.precision, world.device):
        for step in range(steps):
            begin = (step * world.num_processes + world.process_index) * samples
            batch = Batch(list(range(begin, begin + samples)), columns)
            taken.append(seconds(partial(train_state.step, step, [batch], loss, lambda loss: None)))
    rows = networks.rows * world.num_processes
    # With a late r some passes are the head's alone, of which forward_passes does not know.
    flops = None if asked.late_r else rows * objective.forward_passes(stage) * networks.flops(kind)
    return figures(
        rows, taken[_WARM_UP:], flops=flops, objective=objective.name, late_r=asked.late_r, compile=asked.compile,
        activation_checkpointing=asked.activation_checkpointing,
    )  # fmt: skip


def _columns(networks: Networks, objective: Objective, samples: int) -> dict[str, torch.Tensor]:
    labels = torch.arange(samples) % networks.config.num_classes
    if objective.reads is None:
        return {"label": labels}
    if objective.reads == "latents":
        latents = networks.random_latents(samples * max(1, objective.class_group))
        grouped = latents.unflatten(0, (samples, objective.class_group)) if objective.class_group else latents
        return {"latent": grouped, "label": labels}
    solved = resolve(TrajectorySettings, "trajectories", networks.settings.preset)
    states = torch.stack([networks.random_latents(solved.solver_steps + 1) for _ in range(samples)])
    times = torch.linspace(1, 0, solved.solver_steps + 1).repeat(samples, 1)
    return {"states": states, "times": times, "label": labels}
