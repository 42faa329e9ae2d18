"""Drifting: its fields against other ways to compute them, and against distributions that must be reached."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import close, failed
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment
from test_training import difference
from torch import Tensor, nn

from mfkit.flow.fields import FIELDS, Vectors, transport
from mfkit.flow.objectives.base import Batch, Loss, Models
from mfkit.flow.objectives.drifting import Drifting
from mfkit.flow.random import Draws
from mfkit.flow.views import VIEWS


def vectors(iterations: float = 1) -> Vectors:
    """Two sets of vectors in float64."""
    draw = torch.Generator().manual_seed(0)
    x, others, real = (torch.randn(2, n, 5, generator=draw, dtype=torch.float64) for n in (4, 3, 6))
    return Vectors(x, others, real + 1, lambda: torch.zeros_like(x), iterations)


@pytest.mark.fast
def test_two_sided_field_by_loops() -> None:
    """Affinity by affinity, as the paper writes it."""
    found, v, tau = FIELDS["two-sided"].move(vectors(), 0.3), vectors(), 0.3
    for m in range(2):
        x, real = v.x[m].numpy(), v.real[m].numpy()
        targets = np.concatenate([x, v.others[m].numpy(), real])
        kernel = np.array([[np.exp(-np.linalg.norm(a - b) / np.sqrt(5) / tau) for b in targets] for a in x])
        kernel[np.arange(4), np.arange(4)] = 0
        affinity = np.sqrt(np.maximum(kernel / kernel.sum(1, keepdims=True) * (kernel / kernel.sum(0)), 1e-6))
        for i in range(4):
            step = np.zeros(5)
            for (j, positive), (k, negative) in product(enumerate(real, 7), enumerate(targets[:7])):
                step += affinity[i, j] * affinity[i, k] * (positive - negative)
            close(found[m, i], torch.from_numpy(step))


@pytest.mark.fast
def test_token_field_by_loops() -> None:
    v, tau = vectors(), 0.3
    jitter = torch.linspace(-1, 1, v.x.numel(), dtype=torch.float64).view_as(v.x)
    found = FIELDS["token"].move(Vectors(v.x, v.others, v.real, lambda: jitter, 1), tau)
    for m, i in product(range(2), range(4)):
        at = v.x[m, i] + tau * 5**0.5 * jitter[m, i]
        step = torch.zeros(5, dtype=torch.float64)
        for side, sign in ((v.real[m], 1), (torch.cat([v.x[m, :i], v.x[m, i + 1 :], v.others[m]]), -1)):
            weights = torch.stack([(-(y - at).norm() / 5**0.5 / tau).exp() for y in side])
            step += sign * sum(w / weights.sum() * (y - at) for w, y in zip(weights, side, strict=True))
        close(found[m, i], step)


@pytest.mark.fast
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_without_iterations_it_is_the_gradient_of_the_mean_discrepancy(tau: float) -> None:
    """Of the witness function of the Gaussian kernel, at each generated vector, up to one factor."""
    v = vectors(0)
    x = v.x.clone().requires_grad_()

    def kernel(y: Tensor) -> Tensor:
        return (-(x.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1) / (2 * tau * 5)).exp().mean(2)

    (gradient,) = torch.autograd.grad((kernel(v.real) - kernel(v.others)).sum(), x)
    found = FIELDS["sinkhorn"].move(v, tau)
    factors = (found / gradient).flatten(1)
    assert torch.allclose(factors, factors[:, :1].expand_as(factors))


@pytest.mark.fast
def test_half_an_iteration_is_the_gradient_of_the_log_densities() -> None:
    """Of the kernel density estimates' logarithms: the field of the KL divergence, times tau D."""
    v, tau = vectors(0.5), 0.4
    x = v.x.clone().requires_grad_()

    def log_density(y: Tensor) -> Tensor:
        return (-(x.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1) / (2 * tau * 5)).logsumexp(2)

    (gradient,) = torch.autograd.grad((log_density(v.real) - log_density(v.others)).sum(), x)
    close(FIELDS["sinkhorn"].move(v, tau), tau * 5 * gradient)


@pytest.mark.fast
def test_the_transport_plan_against_exact_assignment() -> None:
    """With little regularisation and as many on either side it is the cheapest assignment; its marginals are right."""
    draw = torch.Generator().manual_seed(1)
    cost = torch.rand(3, 8, 8, generator=draw, dtype=torch.float64)
    plan = transport(-cost / 2e-3, 5000)
    for one, c in zip(plan, cost, strict=True):
        rows, columns = linear_sum_assignment(c.numpy())
        assert one.argmax(1).tolist() == columns[np.argsort(rows)].tolist()
    soft = transport(-cost / 0.1, 200)
    assert torch.allclose(soft.sum(1), torch.ones(3, 8, dtype=torch.float64), atol=1e-6)
    few = transport(-cost / 0.1, 1)  # one iteration: columns are right, before the rows are divided
    assert (few.sum(1) - 1).abs().max() > 1e-3


@pytest.mark.fast
def test_views_of_a_latent() -> None:
    x = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    assert torch.equal(VIEWS["token"](x)[1, 6], x[1, :, 1, 2])
    assert torch.equal(VIEWS["latent"](x)[:, 0], x.flatten(1))
    assert torch.equal(VIEWS["mean-token"](x)[:, 0], x.mean((2, 3)))
    assert torch.equal(VIEWS["pooled-2"](x)[0, 3], x[0, :, 2:, 2:].mean((1, 2)))
    assert VIEWS["pooled-4"](torch.zeros(1, 3, 6, 6)).shape == (1, 4, 3)


def batch(real: Tensor, positions: list[int]) -> Batch:
    """:param real: (G, P, C, H, W)."""
    labels = torch.arange(len(real))
    return Batch(
        {"latent": real}, labels, positions, torch.zeros(len(real)), Draws(0, "test", positions), 1.0, real.shape[2:]
    )


@pytest.mark.parametrize(
    "settings",
    [
        dict(field="two-sided"),
        dict(field="two-sided", extra=0, view=("latent", "mean-token")),
        dict(field="token"),
        dict(field="sinkhorn", extra=63),
        dict(field="sinkhorn", extra=63, sinkhorn_iterations=10, temperature=(0.05,)),
        dict(field="sinkhorn", extra=63, sinkhorn_iterations=0.5),
        dict(field="sinkhorn", extra=63, sinkhorn_iterations=0),
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_an_affine_generator_reaches_the_distribution(settings: dict) -> None:
    """a + b z against N(2, 0.5^2), as many that repel as attract, from N(0, 1.5^2)."""
    objective = Drifting(**dict(generated=32, extra=31, real=63) | settings)
    shift, spread = torch.zeros(4, 1, 1, requires_grad=True), torch.full((4, 1, 1), 1.5, requires_grad=True)

    def u(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return z - (shift + spread * z)

    optimizer = torch.optim.Adam([shift, spread], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    draw = torch.Generator().manual_seed(0)
    for step in range(400):
        optimizer.zero_grad()
        real = 2 + 0.5 * torch.randn(1, objective.real, 4, 1, 1, generator=draw)
        objective(Models(u, u), batch(real, [step])).value.backward()
        optimizer.step()
        schedule.step()
    assert shift.mean().item() == pytest.approx(2, abs=0.02)
    assert spread.abs().mean().item() == pytest.approx(0.5, abs=0.03)


class Small(nn.Module):
    """A student with some weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.label = nn.Conv2d(3, 3, 1), nn.Embedding(5, 3)

    def forward(self, z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.mix(z).tanh() + self.label(y)[:, :, None, None]


def gradient(objective: Drifting, real: Tensor, pieces: int) -> tuple[list[float], Tensor]:
    network, values = Small(), []
    for loss in objective.losses(Models(network, network), batch(real, [4, 5]), pieces):
        (loss.value / pieces).backward()
        values.append(loss.value.item())
    return values, torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


@pytest.mark.fast
@pytest.mark.parametrize("field", list(FIELDS))
def test_pieces_change_no_gradient(field: str) -> None:
    real = torch.randn(2, 9, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    objective = Drifting(field=field, view=("token", "latent"), generated=8, extra=6, real=9)
    values, whole = gradient(objective, real, 1)
    for pieces in (2, 4, 16):
        own, found = gradient(objective, real, pieces)
        close(found, whole.double(), 1e-5)
        assert own == pytest.approx(pieces * values, rel=1e-5)
    # Descending the positions themselves is another way to the same gradient.
    network = Small()
    z = Draws(0, "test", [4, 5]).normal("noise", (8, 3, 2, 2)).flatten(0, 1)
    x = z - network(z, z.new_zeros(16), z.new_ones(16), torch.arange(2).repeat_interleave(8))
    leaf = x.detach().requires_grad_()
    objective.loss(Models(network, network), batch(real, [4, 5]), {"x": leaf}, 16).value.backward()
    x.backward(leaf.grad)
    close(torch.cat([p.grad.flatten() for p in network.parameters()]), whole.double(), 1e-5)


@pytest.mark.fast
@pytest.mark.parametrize("field", list(FIELDS))
def test_fields_stay_in_float32_where_the_network_does_not(field: str) -> None:
    objective = Drifting(field=field, view=("token", "latent"), generated=8, extra=8, real=16)
    real = torch.randn(2, 16, 3, 2, 2, generator=torch.Generator().manual_seed(0))

    def u(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return 0.5 * z

    exact = objective(Models(u, u), batch(real, [0, 1]))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = objective(Models(u, u), batch(real, [0, 1]))
    assert {name: float(value) for name, value in rounded.parts.items()} == {
        name: float(value) for name, value in exact.parts.items()
    }


@pytest.mark.fast
@pytest.mark.parametrize("field", list(FIELDS))
def test_the_loss_is_constant_and_the_log_shows_what_falls(field: str) -> None:
    """A field of one temperature has the loss 1 in any units, at the real latents and beside them."""
    objective = Drifting(field=field, view=("latent",), temperature=(0.2,), generated=64, extra=64, real=128)
    real = torch.randn(1, 128, 3, 2, 2, generator=torch.Generator().manual_seed(0))

    def of(scale: float, shift: float) -> Loss:
        def u(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return (1 - scale) * z  # x = scale z

        return objective(Models(u, u), batch(scale * (real + shift), [0]))

    there, beside = of(1, 0), of(1, 1)
    assert [float(loss.value) for loss in (there, beside)] == pytest.approx([1, 1], rel=1e-4)
    assert list(there.parts) == ["field.latent.0.2"] and beside.mse > 10 * there.mse
    assert float(of(10, 1).mse) == pytest.approx(float(beside.mse), rel=1e-3)


DRIFT = (
    "bootstrap --init {0}/cmt.safetensors --latents {0}/latents --objective drifting --view token --view mean-token "
    "--generated 8 --extra 4 --real 16 --optimizer adamw --batch-size 32 --log-every 1 --steps 4 -o OUT.safetensors"
)


def test_micro_batches_do_what_a_whole_batch_does(chain: Path, tmp_path: Path, mfkit) -> None:
    command = DRIFT.format(chain)
    assert mfkit(command.replace("OUT", "one")).code == 0
    for name, option in (("rows", "--micro-batch 2"), ("class", "--micro-batch 8"), ("two", "--micro-batch 16")):
        done = mfkit(f"{command.replace('OUT', name)} {option}")
        assert done.code == 0, done.err
    one, start = load_file("one.safetensors"), load_file(chain / "cmt.safetensors")
    assert difference(start, one) > 1e-3
    for name in ("rows", "class", "two"):
        assert difference(one, load_file(f"{name}.safetensors")) < 1e-4, name
    lines = [json.loads(line) for line in (tmp_path / "rows.log.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (tmp_path / "one.log.jsonl").read_text().splitlines()]
    shown = [name for name in expected[0] if name.startswith("field.")]
    assert len(shown) == 6
    for name in ("loss", "mse", "grad_norm", *shown):
        assert [line[name] for line in lines] == pytest.approx([line[name] for line in expected], rel=1e-3)
    failed(mfkit(command.replace("OUT", "odd") + " --micro-batch 3"), 2, "--micro-batch 3 does not go into 8 rows")


def test_settings_of_drifting(chain: Path, mfkit) -> None:
    plan = json.loads(mfkit(DRIFT.format(chain) + " --temperature 0.1 --temperature 0.3 --dry-run").out)["settings"]
    assert plan["temperature"] == [0.1, 0.3] and plan["view"] == ["token", "mean-token"]
    assert plan["learning_rate"] == 5e-4 and plan["class_dropout"] == 0  # the preset's of this objective
    for options, word in (
        ("--view pixel", "view is pixel; choose from token"),
        ("--field sinkhorn --extra 0", "field sinkhorn needs latents without a gradient"),
        ("--field sinkhorn --sinkhorn-iterations 1.5", "give a whole number, or 0.5"),
        ("--sinkhorn-iterations 2", "is of --field sinkhorn, not of two-sided"),
        ("--jitter 2", "is of --field token, not of two-sided"),
        ("--norm-p 1", "is of --objective mean-flow"),
    ):
        failed(mfkit(f"{DRIFT.format(chain)} {options}"), 2, word)
