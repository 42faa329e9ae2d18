"""distill and bootstrap: one mean-flow training; only the source of the velocity differs."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import ceil

import torch
from torch import Tensor, nn

from mfkit.artifacts.artifact import Artifact
from mfkit.autoencoders import weights
from mfkit.config.settings import GeneratorSettings, MeanFlowSettings, ModelName, PresetName
from mfkit.data.latents import LatentSet, check_fit, check_same_rae, fresh_config
from mfkit.data.loader import Batch
from mfkit.flow.derivative import Method, derivative
from mfkit.flow.losses import Loss, mean_flow
from mfkit.flow.random import Draws
from mfkit.flow.times import interpolate, interval, time_shift
from mfkit.models.dit import AverageVelocityDiT, null_labels
from mfkit.runtime.blocks import compile_blocks
from mfkit.runtime.distributed import processes
from mfkit.runtime.seeding import seeded
from mfkit.training.plan import Plan

VelocityAt = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(z (B, C, H, W), t (B,), y (B,), e - x (B, C, H, W)) -> the velocity at z."""

Objective = Callable[..., Loss]
"""Called as :func:`mfkit.flow.losses.mean_flow` is."""


def plan_distill(
    latents: LatentSet, teacher: Artifact, init: Artifact, preset: PresetName, settings: GeneratorSettings,
    flow: MeanFlowSettings, objective: Objective = mean_flow,
) -> Plan:  # fmt: skip
    """Mean-flow distillation (MFD): the velocity is the teacher's. ``init`` is a student, or the teacher itself.

    :param objective: the loss; a benchmark gives another formulation of it.
    """
    check_same_rae(teacher, init)
    check_fit(latents, teacher)
    network = weights.load_generator(teacher.path, "teacher").requires_grad_(False).to(processes().device)
    if settings.compile:
        compile_blocks(network.blocks)

    def teacher_velocity(z: Tensor, t: Tensor, y: Tensor, one_point: Tensor) -> Tensor:
        with torch.no_grad():
            return network(z, t, y)

    start = _started(init, latents, settings.seed)
    return _plan("distill", latents, start, {"teacher": teacher}, teacher_velocity, preset, settings, flow, objective)


def plan_bootstrap(
    latents: LatentSet, init: Artifact, preset: PresetName, settings: GeneratorSettings, flow: MeanFlowSettings,
    objective: Objective = mean_flow,
) -> Plan:  # fmt: skip
    """Bootstrapping (MFT): the velocity is the one-point estimate e - x. ``objective`` as for distillation."""
    start = _started(init, latents, settings.seed)
    return _plan("bootstrap", latents, start, {}, _one_point, preset, settings, flow, objective)


def plan_from_scratch(
    latents: LatentSet, model: ModelName, shift: float, preset: PresetName, settings: GeneratorSettings,
    flow: MeanFlowSettings,
) -> Plan:  # fmt: skip
    """Vanilla mean flow (arXiv 2505.13447, without guidance): the same from random weights."""
    with seeded(settings.seed):
        network = AverageVelocityDiT(fresh_config(latents, model))
    start = _Start(network, shift or time_shift(*latents.shape), latents.classes, latents.artifact.mention("rae"))
    return _plan("bootstrap", latents, start, {}, _one_point, preset, settings, flow)


@dataclass(frozen=True)
class _Start:
    """A student before its training."""

    network: AverageVelocityDiT
    time_shift: float
    classes: list[str]
    inputs: dict[str, Artifact]


def _started(init: Artifact, latents: LatentSet, seed: int) -> _Start:
    check_fit(latents, init)
    network = weights.load_generator(init.path, "teacher", "student")
    if not isinstance(network, AverageVelocityDiT):
        with seeded(seed):
            network = AverageVelocityDiT.from_teacher(network)
    return _Start(network, init.config["time_shift"], init.config["classes"], {"init": init, **init.mention("rae")})


def _one_point(z: Tensor, t: Tensor, y: Tensor, one_point: Tensor) -> Tensor:
    return one_point


def _plan(
    purpose: str, latents: LatentSet, start: _Start, inputs: dict[str, Artifact], velocity_at: VelocityAt,
    preset: PresetName, settings: GeneratorSettings, flow: MeanFlowSettings, objective: Objective = mean_flow,
) -> Plan:  # fmt: skip
    network, shift = start.network, start.time_shift
    classes = network.config.classes
    automatic: Method = "central" if settings.precision == "float32" else "jvp"
    method = automatic if flow.derivative == "auto" else flow.derivative
    du_dt = derivative(method, flow.difference_step)

    def loss(net: nn.Module, batch: Batch) -> Loss:
        x, y = batch.columns["latent"].float(), batch.columns["label"]
        draws = Draws(settings.seed, purpose, batch.positions, x.device)
        noise, times = draws.normal("noise", x.shape[1:]), draws.uniform("time", 2)
        fixed = instantaneous(torch.tensor(batch.positions), flow.instantaneous)
        moving = moving_rows(fixed, flow.instantaneous).to(x.device, non_blocking=True)
        r, t = interval(times[:, 0], times[:, 1], shift, fixed.to(x.device, non_blocking=True))
        y = null_labels(y, classes, draws.uniform("class-dropout") < settings.label_drop)
        z, one_point = interpolate(x, noise, t)
        v = velocity_at(z, t, y, one_point)
        return objective(
            net, du_dt, z, r, t, y, v,
            moving=moving, bare_u=network, power=flow.weight_power, offset=flow.weight_offset,
        )  # fmt: skip

    return Plan(
        kind="student",
        network=network,
        config={"time_shift": shift, "classes": start.classes, "preset": preset},
        source=latents.source,
        loss=loss,
        inputs=inputs | {"latents": latents.artifact} | start.inputs,
        settings=settings,
        other_settings=asdict(replace(flow, derivative=method)),
    )


def instantaneous(positions: Tensor, share: float) -> Tensor:
    """Which rows have r = t: (B,) booleans, spread evenly, so that any run of rows holds its share of them."""
    moving, positions = 1 - share, positions.double()
    return torch.floor((positions + 1) * moving + 1e-6) == torch.floor(positions * moving + 1e-6)


def moving_rows(fixed: Tensor, share: float) -> Tensor:
    """(M,) indices of the rows that are not ``fixed`` (B,), as many in every batch of B rows: the last may be repeated.

    With one count there is one shape to compile; nothing is repeated where the share of B is a whole number.
    """
    moving = torch.nonzero(~fixed).squeeze(1)
    missing = ceil(len(fixed) * (1 - share) - 1e-6) - len(moving)
    return torch.cat([moving, moving[-1:].expand(missing)]) if len(moving) and missing > 0 else moving
