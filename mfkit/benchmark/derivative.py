"""How far each way to du/dt is from the exact derivative in float64."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mfkit.autoencoders import weights
from mfkit.benchmark.rates import seconds
from mfkit.benchmark.request import BenchRequest
from mfkit.benchmark.synthetic import Synthetic
from mfkit.config import presets
from mfkit.config.settings import MeanFlowSettings, PrecisionName
from mfkit.flow.derivative import AverageVelocity, Derivative, central_difference, jvp
from mfkit.models.dit import AverageVelocityDiT
from mfkit.runtime.distributed import processes
from mfkit.runtime.precision import autocast, products


def bench_derivative(request: BenchRequest, inputs: Synthetic) -> dict[str, Any]:
    """Relative errors of du/dt, as norms over a batch, and the seconds that each way takes.

    The difference is also taken in the low precisions in which mfkit never takes it, to show why.
    """
    device, rows = processes().device, request.rows(processes().device)
    student = inputs.generator("student")
    network = weights.load_generator(student.path, "student").to(device)
    assert isinstance(network, AverageVelocityDiT)
    generator = torch.Generator().manual_seed(0)
    z, v = (torch.randn(rows, *inputs.shape, generator=generator).to(device) for _ in range(2))
    t = torch.linspace(0.2, 0.9, rows, device=device)
    y = torch.zeros(rows, dtype=torch.long, device=device)
    exact_network = copy.deepcopy(network).double()
    exact = jvp(exact_network, z.double(), 0.4 * t.double(), t.double(), y, v.double())
    flow = presets.resolve(MeanFlowSettings, "bootstrap", inputs.preset, {})
    step = flow.difference_step
    ways: list[tuple[str, PrecisionName, Derivative]] = [
        ("jvp", "float32", jvp), ("central", "float32", central_difference(step)),
        ("jvp", "bf16", jvp), ("central", "bf16", _recast(central_difference(step), "bf16")),
    ]  # fmt: skip
    if device.type == "cuda":
        ways += [("jvp", "tf32", jvp), ("central", "tf32", central_difference(step))]
    results = []
    for name, precision, way in ways:
        estimate = partial(way, network, z, 0.4 * t, t, y, v)
        with products(precision, device), autocast(precision, device):
            error = float((estimate().double() - exact).norm() / exact.norm())
            taken = min(seconds(estimate, device) for _ in range(request.rounds))
        results.append({"derivative": name, "precision": precision, "error": error, "seconds": taken})
    return {"stage": "derivative", "batch_size": rows, "difference_step": step, "ways": results}


def _recast(way: Derivative, precision: PrecisionName) -> Derivative:
    """A derivative whose evaluations are cast, though it asks for float32."""

    def estimate(u: AverageVelocity, *arguments: Tensor) -> Tensor:
        def cast(*inputs: Tensor) -> Tensor:
            with autocast(precision, inputs[0].device):
                return u(*inputs)

        return way(cast, *arguments)

    return estimate
