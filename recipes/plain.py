"""A training step beside the plain formulation of its loss, in turn, and the error of each way to du/dt, as JSON.

python recipes/plain.py [STAGE] [MODEL] [TOKENS] [ROWS] [ROUNDS]      default: distill S 256 8 3

The plain formulation is that of the released code: u at z, z + h v and z - k v in one batch of three times the rows,
every row and every evaluation with gradients. Ours takes du/dt without gradients, on the rows with r < t alone.
"""

import copy
import json
import sys
from dataclasses import asdict, replace
from functools import partial
from statistics import median
from typing import Any, get_args

import torch
from torch import Tensor

from mfkit.benchmark.machine import machine, peak_memory, reset_peak_memory, seconds
from mfkit.benchmark.networks import Networks
from mfkit.benchmark.settings import BenchSettings
from mfkit.config.presets import resolve_training
from mfkit.config.settings import PrecisionName
from mfkit.data.loader import Batch
from mfkit.flow.derivative import central_difference, jvp
from mfkit.flow.objectives import Stage
from mfkit.flow.objectives.base import Loss, Models, adaptive_mean_squared
from mfkit.flow.objectives.interval import Points
from mfkit.flow.objectives.mean_flow import MeanFlow
from mfkit.flow.times import expand_to
from mfkit.inference.guided import frozen_velocity
from mfkit.runtime.distributed import processes
from mfkit.runtime.precision import autocast
from mfkit.training.generator import generator_loss, models_of
from mfkit.training.train_state import TrainState


class Plain(MeanFlow):
    """Mean flow as the released code has it."""

    def loss(self, models: Models, points: Points) -> Loss:
        p, step = points, self.finite_difference_step
        later, earlier = (p.t + step).clamp(max=1), torch.maximum(p.t - step, p.r)
        places = torch.cat([p.z, p.z + expand_to(later - p.t, p.z) * p.v, p.z - expand_to(p.t - earlier, p.z) * p.v])
        at = models.network(places, p.r.repeat(3), torch.cat([p.t, later, earlier]), p.y.repeat(3))
        here, ahead, behind = at.chunk(3)
        slope = (ahead - behind) / expand_to((later - earlier).clamp(min=1e-12), p.z)
        target = p.v - expand_to(p.t - p.r, p.z) * slope
        return adaptive_mean_squared(here - target.detach(), self.norm_p, self.norm_eps)


def steps(stage: Stage, networks: Networks, rounds: int) -> dict[str, Any]:
    """Both formulations on the same draws, in turn."""
    flags = {"batch_size": networks.rows, "steps": rounds + 1, "objective": "mean-flow"}
    settings, ours = resolve_training(stage, "imagenet256", flags)
    assert isinstance(ours, MeanFlow)
    teacher = networks.build("teacher") if stage == "distill" else None
    velocity = frozen_velocity(teacher, processes().device) if teacher else None
    columns = {"latent": networks.random_latents(networks.rows), "label": torch.arange(networks.rows)}
    network = networks.build("student")
    state = TrainState(network, network.blocks, settings)
    losses = {
        name: generator_loss(stage, network, models_of(network, velocity), objective, settings, networks.time_shift)
        for name, objective in (("ours", ours), ("plain", Plain(**asdict(replace(ours, derivative="central")))))
    }
    taken: dict[str, list[float]] = {"ours": [], "plain": []}
    peaks: dict[str, int | None] = {}
    for number in range(rounds + 1):
        batch = Batch(list(range(number * networks.rows, (number + 1) * networks.rows)), columns)
        for name, loss in losses.items():
            reset_peak_memory()
            taken[name].append(seconds(partial(state.step, number, [batch], loss, lambda loss: None)))
            peaks[name] = peak_memory()
    result: dict[str, Any] = {f"{name}_seconds": median(found[1:]) for name, found in taken.items()}
    result["times_as_fast"] = result["plain_seconds"] / result["ours_seconds"]
    return result | {f"{name}_peak_bytes": peak for name, peak in peaks.items()}


def derivatives(networks: Networks, rows: int = 4) -> list[dict[str, Any]]:
    """Relative distances to du/dt in float64. mfkit takes no difference in bfloat16; the last row shows why."""
    device = processes().device
    torch.manual_seed(0)
    network: Any = networks.build("student")
    for value in network.parameters():  # layers that start at zero would make it constant
        value.data += 0.02 * torch.randn_like(value)
    z, v = torch.randn(2, rows, *networks.config.latent_shape, device=device)
    t = torch.linspace(0.2, 0.9, rows, device=device)
    places = (z, 0.4 * t, t, torch.zeros(rows, dtype=torch.long, device=device), v)
    exact = jvp(copy.deepcopy(network).double(), *(x.double() if x.is_floating_point() else x for x in places))

    def cast(*inputs: Tensor) -> Tensor:
        with autocast("bf16", device):
            return network(*inputs)

    step = MeanFlow().finite_difference_step
    ways: list[tuple[str, PrecisionName, Any, Any]] = [
        ("jvp", "float32", jvp, network), ("central", "float32", central_difference(step), network),
        ("jvp", "bf16", jvp, network), ("central", "bf16", central_difference(step), cast),
    ]  # fmt: skip
    found = []
    for name, precision, way, u in ways:
        with autocast(precision, device):
            error = (way(u, *places).double() - exact).norm() / exact.norm()
        found.append({"derivative": name, "precision": precision, "error": float(error)})
    return found


def main(arguments: list[str]) -> None:
    given = dict(enumerate(arguments))
    stage: Any = given.get(0, "distill")
    if stage not in get_args(Stage) or stage == "midtrain":
        sys.exit(f"usage: python {sys.argv[0]} [distill|bootstrap|train-mean-flow] [MODEL] [TOKENS] [ROWS] [ROUNDS]")
    networks = Networks.of(
        BenchSettings(model=given.get(1, "S"), tokens=int(given.get(2, 256)), batch_size=int(given.get(3, 8)))
    )
    measured = {"stage": stage, **steps(stage, networks, int(given.get(4, 3))), "derivatives": derivatives(networks)}
    print(json.dumps(measured | {"machine": machine()}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
