"""The training stages: our step beside the plain one, the loader alone and the network alone."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from statistics import median
from typing import Any, get_args

import torch
from torch import Tensor, nn

from mfkit.benchmark.plain import plain_mean_flow
from mfkit.benchmark.rates import peak_bytes, product_rate, seconds
from mfkit.benchmark.request import BenchRequest
from mfkit.benchmark.synthetic import Synthetic
from mfkit.config import presets
from mfkit.config.settings import (
    FlowSettings,
    GeneratorSettings,
    MeanFlowSettings,
    MidtrainSettings,
    PrecisionName,
    TrajectorySettings,
)
from mfkit.data.latents import open_latents, open_trajectories
from mfkit.data.loader import Batch, Layout, feed
from mfkit.errors import UsageError
from mfkit.evaluation.cost import TrainedStage, forward_passes
from mfkit.evaluation.flops import generator_work
from mfkit.flow.losses import Loss, mean_flow
from mfkit.runtime.distributed import processes
from mfkit.runtime.precision import autocast, products
from mfkit.training import meanflow, midtrain, teacher
from mfkit.training.plan import Plan
from mfkit.training.train_state import LossOf, Optimisation

STAGES: tuple[TrainedStage, ...] = get_args(TrainedStage)
_LOADED = 32
"""Batches that the loader alone is timed on."""


def bench_training(stage: TrainedStage, request: BenchRequest, inputs: Synthetic) -> dict[str, Any]:
    """Times the optimiser steps of a stage. ``rounds`` times, each thing once in turn; medians are reported."""
    state = processes()
    device = state.device
    rows = request.rows(device)
    if rows % state.num_processes:
        raise UsageError(f"a batch of {rows} rows does not divide among {state.num_processes} processes")
    settings = dataclasses.replace(
        presets.resolve(GeneratorSettings, stage, request.preset, {}),
        batch_size=rows, micro_batch=0, precision=request.precision, compile=request.compile,
        activation_checkpointing=request.activation_checkpointing,
    )  # fmt: skip
    flow = presets.resolve(MeanFlowSettings, "distill" if stage == "distill" else "bootstrap", request.preset, {})
    plan = _plan(stage, inputs, rows, settings, flow, mean_flow)
    plain_loss = plan.loss
    if stage in ("distill", "bootstrap"):
        plain = _plan(stage, inputs, rows, settings, flow, plain_mean_flow(flow.difference_step))
        plain.network.load_state_dict(plan.network.state_dict())
        plain_loss = plain.loss
    layout = Layout(rows // plan.rows_per_item, rows // plan.rows_per_item // state.num_processes,
                    state.process_index, state.num_processes)  # fmt: skip
    optimisation = Optimisation(plan.network, plan.network.blocks, settings)
    source = feed(plan.source, layout, first_step=0, last_step=10**6, seed=0, workers=settings.workers)
    batch = _on(device, next(source))
    measured: dict[str, Any] = {
        "stage": stage, "batch_size": rows, "processes": state.num_processes,
        "parameters": sum(value.numel() for value in optimisation.parameters.values()),
        "derivative": plan.other_settings.get("derivative"),
    }  # fmt: skip

    with products(request.precision, device):
        measured |= _memory_and_agreement(optimisation, plan.loss, plain_loss, batch, request)
        peak = product_rate(request.precision, device)
        steps = count()
        loaded = iter(source)

        def step(loss: LossOf) -> Callable[[], None]:
            return lambda: _step(optimisation, next(steps), loaded, loss)

        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        step(plan.loss)()  # compiles, and fills the optimiser's state
        ours, plains, alone = [], [], []
        memory = 0
        for _ in range(request.rounds):
            ours.append(seconds(step(plan.loss), device))
            memory = memory or (torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident_peak())
            alone.append(seconds(lambda: _network_alone(optimisation, batch, plan.kind), device))
            if request.plain:
                with _as_written(optimisation):
                    plains.append(seconds(step(plain_loss), device))
    whole = seconds(lambda: _read(plan, layout, settings.workers), device)
    work = 1e9 * generator_work(plan.network.config, plan.kind)["flops"]
    flops = rows * forward_passes(stage, flow.instantaneous) * work / state.num_processes
    step_seconds = median(ours)
    return measured | {
        "step_seconds": step_seconds,
        "plain_step_seconds": median(plains) if plains else None,
        "plain_ratio": median(p / o for p, o in zip(plains, ours, strict=True)) if plains else None,
        "images_per_second": rows / step_seconds,
        "network_seconds": median(alone),
        "loader_images_per_second": _LOADED * layout.micro_batch * plan.rows_per_item / whole,
        "flops_per_step": flops,
        "flops_per_second": flops / step_seconds,
        "peak_flops_per_second": peak,
        "mfu": flops / step_seconds / peak,
        "peak_memory_bytes": memory,
    }


def _plan(
    stage: TrainedStage, inputs: Synthetic, rows: int, settings: GeneratorSettings, flow: MeanFlowSettings,
    objective: meanflow.Objective,
) -> Plan:  # fmt: skip
    preset = inputs.preset
    if stage == "midtrain":
        pairs = presets.resolve(MidtrainSettings, stage, preset, {})
        states = presets.resolve(TrajectorySettings, "trajectories", preset, {}).solver_steps
        solved = open_trajectories(inputs.trajectories(4 * rows, states))
        return midtrain.plan(solved, inputs.generator("teacher").path, preset, settings, pairs)
    latents = open_latents(inputs.latents(4 * rows))
    if stage == "train-teacher":
        path = presets.resolve(FlowSettings, stage, preset, {})
        plan = teacher.plan(latents, inputs.model, preset, settings, path)
        _let_work(plan.network)
        return plan
    artifact = inputs.generator("teacher")
    if stage == "distill":
        return meanflow.plan_distill(latents, artifact, artifact, preset, settings, flow, objective)
    return meanflow.plan_bootstrap(latents, artifact, preset, settings, flow, objective)


def _let_work(network: nn.Module) -> None:
    """Weights that begin at zero would let whole parts of the network idle."""
    for parameter in network.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def _memory_and_agreement(
    optimisation: Optimisation, loss: LossOf, plain_loss: LossOf, batch: Batch, request: BenchRequest
) -> dict[str, Any]:
    """Activation memory of both, and how far value and gradient are apart for the same draws; nothing is learnt."""
    parameters = list(optimisation.parameters.values())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)

    def once(loss: LossOf) -> tuple[int, Tensor, list[Tensor]]:
        values: list[Tensor] = []

        def computation() -> None:
            with autocast(optimisation.settings.precision, optimisation.accelerator.device):
                value = loss(optimisation.network, batch).value
            value.backward()
            values.append(value.detach())

        activations = peak_bytes(computation)
        gradients = []
        for value in parameters:
            if value.grad is not None and request.plain:
                gradients.append(value.grad.clone())
            if value.grad is not None:
                value.grad.zero_()
        return activations, values[0], gradients

    with _as_written(optimisation, precision=request.precision):
        own, value, gradients = once(loss)
        result: dict[str, Any] = {"activation_bytes": own}
        if request.plain:
            with _as_written(optimisation):
                plain, plain_value, plain_gradients = once(plain_loss)
            difference = sum((a - b).square().sum() for a, b in zip(gradients, plain_gradients, strict=True))
            norm = sum(b.square().sum() for b in plain_gradients)
            result |= {
                "plain_activation_bytes": plain,
                "loss_difference": float((value - plain_value).abs() / plain_value.abs()),
                "gradient_difference": float((difference / norm) ** 0.5),
            }
    optimisation.optimizer.zero_grad()
    return result


@contextmanager
def _as_written(optimisation: Optimisation, precision: PrecisionName | None = None) -> Iterator[None]:
    """Without compilation, and in float32, on a GPU TF32, unless a precision is given."""
    settings, device = optimisation.settings, optimisation.accelerator.device
    plain: PrecisionName = precision or ("tf32" if device.type == "cuda" else "float32")
    compiled = [module for module in optimisation.network.modules() if module._compiled_call_impl is not None]
    calls = [module._compiled_call_impl for module in compiled]
    for module in compiled:
        module._compiled_call_impl = None
    optimisation.settings = dataclasses.replace(settings, precision=plain)
    try:
        with products(plain, device):
            yield
    finally:
        optimisation.settings = settings
        for module, call in zip(compiled, calls, strict=True):
            module._compiled_call_impl = call


def _step(optimisation: Optimisation, number: int, batches: Iterator[Batch], loss: LossOf) -> None:
    optimisation.step(number, [next(batches)], loss, _ignore)


def _ignore(loss: Loss) -> None:
    """The loop would add it up."""


def _network_alone(optimisation: Optimisation, batch: Batch, kind: str) -> None:
    """One evaluation with gradients of the rows of a step."""
    column = batch.columns["latent"] if "latent" in batch.columns else batch.columns["states"][:, 0]
    z, y = column.float(), batch.columns["label"]
    t = torch.full((len(z),), 0.7, device=z.device)
    times = (t,) if kind == "teacher" else (0.5 * t, t)
    with autocast(optimisation.settings.precision, z.device):
        value = optimisation.network(z, *times, y).square().mean()
    value.backward()
    optimisation.optimizer.zero_grad()


def _read(plan: Plan, layout: Layout, workers: int) -> None:
    for _ in feed(plan.source, layout, first_step=0, last_step=_LOADED, seed=0, workers=workers):
        pass


def _on(device: torch.device, batch: Batch) -> Batch:
    return Batch(batch.positions, {name: column.to(device) for name, column in batch.columns.items()})


def _resident_peak() -> int:
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
