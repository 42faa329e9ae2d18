"""What only a GPU can show. Skipped, with the reason, where there is none: ``pytest -m gpu``."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import failed, stopped_once
from safetensors.torch import load_file
from test_networks import SMALL, inputs, perturbed
from torch import Tensor

import mfkit as package
from mfkit.data.latents import open_latents
from mfkit.data.loader import BatchSharding, train_batches
from mfkit.data.order import shuffle
from mfkit.flow.derivative import central_difference, jvp
from mfkit.flow.objectives.base import Models
from mfkit.flow.objectives.interval import Points
from mfkit.flow.objectives.mean_flow import MeanFlow
from mfkit.models.dit import AverageVelocityDiT
from mfkit.runtime.precision import autocast, matmul_precision
from mfkit.training.checkpoint import checkpoints

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU here"),
]

GPU = torch.device("cuda")
DISTILL = (
    "distill --teacher {0}/teacher.safetensors --init {0}/cmt.safetensors --latents {0}/latents --steps 4 "
    "--batch-size 16 --log-every 1 -o {1}.safetensors"
)


def relative(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    return float((one - other).norm() / other.norm())


def losses(name: str) -> list[float]:
    return [json.loads(line)["mse"] for line in Path(f"{name}.log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["central", "jvp"])
def test_losses_and_gradients_are_those_of_the_cpu(method: str) -> None:
    """By the CPU in float64."""

    def computed(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(0)
        network = perturbed(AverageVelocityDiT(SMALL)).to(device, dtype)
        z, r, t, y = (value.to(device) for value in inputs(SMALL))
        z, r, t = z.to(dtype), r.to(dtype), t.to(dtype)
        points = Points(z, r, t, y, -z, torch.arange(len(z), device=device), *torch.zeros(2, len(z), device=device))
        objective = MeanFlow(derivative=method, finite_difference_step=0.05, norm_p=0.5)
        with matmul_precision("float32", device):
            loss = objective.loss(Models(network, network), points).value
            trained = [value for value in network.parameters() if value.requires_grad]
            found = torch.autograd.grad(loss, trained, allow_unused=True)
        return [loss, *(value for value in found if value is not None)]

    for ours, exact in zip(computed(GPU, torch.float32), computed(torch.device("cpu"), torch.float64), strict=True):
        assert relative(ours, exact) < 1e-3


def test_images_are_those_of_the_cpu(chain: Path) -> None:
    rae, student = package.load(chain / "rae.safetensors"), package.load(chain / "mft.safetensors")
    z, y = torch.randn(8, *student.config.latent_shape), torch.arange(8)
    zero, one = torch.zeros(8), torch.ones(8)

    @torch.no_grad()
    def images(device: torch.device) -> Tensor:
        networks = rae.to(device), student.to(device)
        with matmul_precision("float32", device):
            places = [value.to(device) for value in (z, zero, one, y)]
            return networks[0].decode(places[0] - networks[1](*places)).cpu()

    on_gpu = images(GPU)
    assert (on_gpu - images(torch.device("cpu"))).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("option", "tolerance"),
    [("--compile", 1e-3), ("--precision tf32", 0.02), ("--precision bf16", 0.05), ("--activation-checkpointing", 1e-5)],
)
def test_options_of_execution_keep_the_losses(mfkit, chain: Path, option: str, tolerance: float) -> None:
    """Both with the same derivative, since tf32 and bf16 take the product by default."""
    same = " --derivative jvp" if "precision" in option else ""
    for name, more in (("plain", ""), ("other", f" {option}")):
        done = mfkit(DISTILL.format(chain, name) + same + more)
        assert done.code == 0, done.err
    assert losses("other") == pytest.approx(losses("plain"), rel=tolerance)


def test_the_product_is_exact_where_the_difference_is_noise() -> None:
    """du/dt against the CPU's product in float64: the product in every precision, the difference in float32 alone."""
    torch.manual_seed(0)
    network = perturbed(AverageVelocityDiT(SMALL))
    z, r, t, y = inputs(SMALL, 5)
    t, v = t.clamp(0.1, 0.9), torch.randn_like(z)
    r = 0.5 * t
    exact = jvp(network.double(), z.double(), r.double(), t.double(), y, v.double())
    network = network.float().to(GPU)
    places = [value.to(GPU) for value in (z, r, t, y, v)]

    def error(method, precision) -> float:
        with matmul_precision(precision, GPU), autocast(precision, GPU):
            return relative(method(network, *places), exact)

    assert error(jvp, "float32") < 1e-4
    assert error(central_difference(5e-3), "float32") < 2e-2
    assert error(jvp, "tf32") < 1e-2 and error(jvp, "bf16") < 0.1


def test_batches_are_read_into_pinned_memory(chain: Path) -> None:
    data = open_latents("latents", str(chain / "latents")).dataset
    batches = train_batches(shuffle(data), BatchSharding(32, 32), first_step=0, last_step=3, seed=0, workers=2)
    for batch in batches:
        column = batch.columns["latent"]
        assert column.is_pinned()
        stored = torch.stack([data[0]["latent"]]).dtype
        assert column.dtype == stored and torch.equal(column.to(GPU, non_blocking=True).cpu(), column)


def test_out_of_memory_names_the_way_out(mfkit, chain: Path) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**26) / total)
    try:
        done = mfkit(DISTILL.format(chain, "large").replace("--batch-size 16", "--batch-size 16384"))
        failed(done, 6, "out of memory", "--micro-batch", "--activation-checkpointing", "--precision bf16")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_a_resumed_run_is_an_uninterrupted_one(mfkit, chain: Path, tmp_path: Path) -> None:
    import signal

    command = DISTILL.replace("--steps 4", "--steps 30") + " --save-every 10"
    assert mfkit(command.format(chain, "whole")).code == 0
    with stopped_once(lambda: checkpoints(tmp_path / "parts.safetensors"), signal.SIGTERM):
        assert mfkit(command.format(chain, "parts")).code == 143
    assert mfkit(command.format(chain, "parts")).code == 0
    whole, parts = (load_file(f"{name}.safetensors") for name in ("whole", "parts"))
    assert max(relative(parts[name], whole[name]) for name in whole if whole[name].any()) < 1e-4


def test_sampling_twice_gives_the_same_images(mfkit, chain: Path) -> None:
    for name in ("one", "two"):
        assert mfkit(f"sample {chain}/mft.safetensors -n 30 -o {name}.npz --rae {chain}/rae.safetensors").code == 0
    one, two = (np.load(f"{name}.npz")["arr_0"] for name in ("one", "two"))
    assert (one == two).all()
