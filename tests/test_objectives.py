"""The losses and du/dt, against closed forms.

For the linear field v(z, t) = a z the flow is z_s = z_t exp(a (s - t)), so the average velocity over [r, t] is
u(z, r, t) = z (1 - exp(-a (t - r))) / (t - r), and its total derivative follows from u = v - (t - r) du/dt.
"""

from collections.abc import Callable

import pytest
import torch
from live_bytes import peak_bytes
from torch import Tensor

from mfkit.flow.derivative import central_difference, jvp
from mfkit.flow.objectives.base import Batch, Loss, Models
from mfkit.flow.objectives.cmt import CMT
from mfkit.flow.objectives.flow_matching import FlowMatching
from mfkit.flow.objectives.interval import Points
from mfkit.flow.objectives.mean_flow import MeanFlow
from mfkit.flow.random import Draws
from mfkit.flow.times import expand_to, interpolate
from mfkit.models.dit import AverageVelocityDiT, DiTConfig
from mfkit.models.layers import attention

pytestmark = pytest.mark.fast

A = -1.7


def linear_u(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
    interval = expand_to(t - r, z)
    return torch.where(interval > 0, z * (-torch.expm1(-A * interval)) / interval.clamp(min=1e-12), A * z)


def rows(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 3, 2, 2, generator=generator, dtype=dtype)
    r = torch.tensor([0.1, 0.0, 0.5, 0.3, 0.9, 0.2], dtype=dtype)
    t = torch.tensor([0.7, 1.0, 0.5, 0.31, 0.999, 0.6], dtype=dtype)
    return z, r, t, torch.arange(6)


def exact_derivative(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return (A * z - linear_u(z, r, t, y)) / expand_to(t - r, z)


@pytest.mark.parametrize("method", [jvp, central_difference(1e-4)])
def test_derivative_of_a_linear_field(method) -> None:
    z, r, t, y = (values[[0, 1, 3, 4, 5]] for values in rows())
    slope = method(linear_u, z, r, t, y, A * z)
    tolerance = 1e-12 if method is jvp else 1e-3  # one-sided at t = 1, where the error is of first order
    assert torch.allclose(slope, exact_derivative(z, r, t, y), atol=tolerance)


def test_central_difference_is_of_second_order() -> None:
    z, r, t, y = (values[[0, 5]] for values in rows())
    errors = [
        (central_difference(step)(linear_u, z, r, t, y, A * z) - exact_derivative(z, r, t, y)).abs().max().item()
        for step in (0.02, 0.01)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.02)


def test_central_difference_stays_where_u_is_trained() -> None:
    seen = []

    def u(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append((r, t))
        return linear_u(z, r, t, y)

    z, r, t, y = (values[[1, 3, 4]] for values in rows())
    central_difference(0.05)(u, z, r, t, y, A * z)
    for r, t in seen:
        assert (r <= t).all() and (t <= 1).all() and (r >= 0).all()


def test_jvp_and_difference_agree_on_the_network() -> None:
    torch.manual_seed(0)
    config = DiTConfig(
        channels=8, side=2, num_classes=3, width=16, depth=1, heads=2, head_width=16, head_depth=1, head_heads=2
    )
    network = AverageVelocityDiT(config).double()
    for parameter in network.parameters():  # its zero-initialised layers would make it constant
        parameter.data += 0.1 * torch.randn_like(parameter)
    network.t_embedder.W.data.mul_(0.3)
    network.r_embedder.W.data.mul_(0.3)
    z, v = torch.randn(2, 5, 8, 2, 2, dtype=torch.float64)
    r, t = torch.linspace(0, 0.4, 5).double(), torch.linspace(0.5, 0.9, 5).double()
    y = torch.tensor([0, 1, 2, 3, 0])
    exact = jvp(network, z, r, t, y, v)
    error = (central_difference(2e-3)(network, z, r, t, y, v) - exact).norm() / exact.norm()
    assert error < 2e-3  # the features of time are taken in float32, which bounds the difference from below
    assert exact.norm() > 1


@pytest.mark.parametrize("width", [64, 512])
@pytest.mark.parametrize("method", [jvp, central_difference(1e-2)])
def test_a_derivative_costs_two_forward_passes(method, width: int) -> None:
    """In the products of its layers, as torch counts them: what ``plan`` and the shelf take it for.

    Of attention the product's derivative has five by N x N, beside a fused forward pass that is not counted on CPUs.
    """
    from torch.utils.flop_counter import FlopCounterMode

    config = DiTConfig(
        channels=8, side=8, num_classes=3, width=width, depth=2, heads=2, head_width=width, head_depth=1, head_heads=2
    )
    network, rows = AverageVelocityDiT(config), 4
    z, v = torch.randn(2, rows, 8, 8, 8)
    r, t, y = torch.full((rows,), 0.2), torch.full((rows,), 0.7), torch.zeros(rows, dtype=torch.long)

    def counted(evaluate: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            evaluate()
        return counter.get_total_flops()

    attention_slopes = 5 * 2 * rows * 64**2 * width * (config.depth + config.head_depth) * (method is jvp)
    expected = 2 * counted(lambda: network(z, r, t, y)) + attention_slopes
    assert expected > 1e6 and counted(lambda: method(network, z, r, t, y, v)) == pytest.approx(expected, rel=0.01)


def test_forward_mode_through_attention_is_exact_and_linear_in_memory() -> None:
    """Against forward-mode differentiation of attention written out, with more queries than are taken at a time."""
    q, k, v, dq, dk, dv = torch.randn(6, 2, 3, 300, 8, dtype=torch.float64)

    def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT / 8**0.5).softmax(-1) @ v

    with torch.no_grad():
        value, slope = torch.func.jvp(attention, (q, k, v), (dq, dk, dv))
        exact = torch.func.jvp(written_out, (q, k, v), (dq, dk, dv))
    assert torch.allclose(value, exact[0]) and torch.allclose(slope, exact[1])

    def held(tokens: int) -> int:
        inputs = torch.randn(6, 1, 2, tokens, 8)
        with torch.no_grad():
            return peak_bytes(lambda: torch.func.jvp(attention, tuple(inputs[:3]), tuple(inputs[3:])))

    assert held(2048) < 2.2 * held(1024)


def test_no_difference_quotient_of_nothing_over_nothing() -> None:
    """r = t = 1: a row that its batch repeats for its shape's sake may stand there."""
    z, ones, y = torch.randn(2, 3, 2, 2), torch.ones(2), torch.arange(2)
    assert central_difference(5e-3)(linear_u, z, ones, ones, y, z).isfinite().all()


def points_of(z: Tensor, r: Tensor, t: Tensor, y: Tensor, v: Tensor) -> Points:
    return Points(z, r, t, y, v, (r < t).nonzero().squeeze(1), torch.zeros(len(z)), torch.zeros(len(z)))


def mean_flow_loss(u, *points: Tensor, method: str = "jvp", **settings: float) -> Loss:
    objective = MeanFlow(derivative=method, finite_difference_step=1e-4, **settings)
    return objective.loss(Models(u, u), points_of(*points))


@pytest.mark.parametrize("method", ["jvp", "central"])
def test_perfect_average_velocity_has_no_mean_flow_loss(method: str) -> None:
    z, r, t, y = rows()
    assert mean_flow_loss(linear_u, z, r, t, y, A * z, method=method).mse < 1e-6
    assert mean_flow_loss(lambda *a: linear_u(*a) + 0.1, z, r, t, y, A * z, method=method).mse > 1e-3


def test_conditional_velocity_of_a_single_image() -> None:
    """With one image x the marginal velocity is the conditional one, the paths are straight, and u = (z - x) / t."""
    x, noise = torch.randn(2, 6, 3, 2, 2, dtype=torch.float64)
    x = x[:1].expand(6, -1, -1, -1)
    _, r, t, y = rows()
    z, v = interpolate(x, noise, t)

    def u(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return (z - x[: len(z)]) / expand_to(t, z)

    assert mean_flow_loss(u, z, r, t, y, v).mse < 1e-20


def test_rows_without_interval_see_the_velocity_only() -> None:
    z, _, t, y = rows()

    def forbidden(*_: object) -> Tensor:
        raise AssertionError("du/dt was taken although r = t in every row")

    loss = MeanFlow(derivative="jvp").loss(Models(linear_u, forbidden), points_of(z, t, t, y, A * z + 0.5))
    assert loss.mse.item() == pytest.approx(0.25)


def test_target_carries_no_gradient_and_weights_are_constants() -> None:
    """The gradient is that of sum_i ||e_i||^2 / (||e_i||^2 + c), with target and denominator held fixed."""
    z, r, t, y = rows()
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    loss = mean_flow_loss(lambda *a: scale * linear_u(*a), z, r, t, y, A * z, norm_p=1.0, norm_eps=0.01)
    loss.value.backward()
    with torch.no_grad():
        u = linear_u(z, r, t, y)
        slope = torch.where(expand_to(t - r, z) > 0, 1.3 * jvp(linear_u, z, r, t, y, A * z), 0.0)
        error = 1.3 * u - (A * z - expand_to(t - r, z) * slope)
        weights = 1 / (error.square().flatten(1).sum(1) + 0.01)
        expected = (weights * (2 * error * u).flatten(1).sum(1)).mean()
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(expected.item(), rel=1e-9)


def test_derivative_is_taken_of_the_unwrapped_network_and_the_loss_of_the_wrapped_one() -> None:
    z, r, t, y = rows()
    calls = []

    def named(name: str):
        return lambda *a: (calls.append((name, len(a[0]))), linear_u(*a))[1]

    models = Models(named("wrapped"), named("unwrapped"))
    MeanFlow(derivative="central").loss(models, points_of(z, r, t, y, A * z))
    longer = int((r < t).sum())
    assert calls == [("unwrapped", longer), ("unwrapped", longer), ("wrapped", len(z))]


def test_mean_flow_is_what_the_released_code_computes() -> None:
    """u at z, z + h v and z - k v in one batch of three times the rows, every row and every evaluation with gradients.

    Value and gradients in float64; a repeated row of du/dt changes nothing, and the work is half of it.
    """
    torch.manual_seed(0)
    config = DiTConfig(
        channels=4, side=4, num_classes=3, width=24, depth=2, heads=2, head_width=32, head_depth=1, head_heads=2
    )
    network = AverageVelocityDiT(config).double()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    z, v = torch.randn(2, 8, 4, 4, 4, dtype=torch.float64)
    t = torch.linspace(0.05, 0.999, 8, dtype=torch.float64)
    r = torch.where(torch.arange(8) % 4 == 1, 0.3 * t, t)
    y, step, power = torch.arange(8) % 4, 5e-3, 0.7

    def released() -> Tensor:
        later, earlier = (t + step).clamp(max=1), torch.maximum(t - step, r)
        places = torch.cat([z, z + expand_to(later - t, z) * v, z - expand_to(t - earlier, z) * v])
        here, ahead, behind = network(places, r.repeat(3), torch.cat([t, later, earlier]), y.repeat(3)).chunk(3)
        target = v - expand_to(t - r, z) * (ahead - behind) / expand_to(later - earlier, z)
        squared = (here - target.detach()).square().flatten(1).sum(1)
        return (squared / (squared.detach() + 1e-3) ** power).mean()

    def ours() -> Tensor:
        objective = MeanFlow(derivative="central", finite_difference_step=step, norm_p=power)
        points = Points(z, r, t, y, v, torch.tensor([1, 5, 5]), torch.zeros(8), torch.zeros(8))
        return objective.loss(Models(network, network), points).value

    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    values = [released(), ours()]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-12)
    for expected, found in zip(*(torch.autograd.grad(value, trained) for value in values), strict=True):
        assert torch.allclose(expected, found, rtol=1e-9, atol=1e-12)
    assert peak_bytes(lambda: ours().backward()) < 0.5 * peak_bytes(lambda: released().backward())


def test_times_of_an_interval_are_ordered_and_uniform_before_the_shift() -> None:
    samples = 100_000
    batch = Batch(
        {"latent": torch.zeros(samples, 1, 1, 1)}, torch.zeros(samples), range(samples), torch.zeros(samples),
        Draws(0, "distill", range(samples)), time_shift=1.0, latent_shape=(1, 1, 1),
    )  # fmt: skip
    points = MeanFlow(ratio_r_equals_t=0.75).points(Models(linear_u, linear_u), batch)
    r, t, longer = points.r, points.t, points.longer
    assert (r <= t).all() and len(longer) == samples / 4 and (r < t).nonzero().squeeze(1).equal(longer)
    # t is the larger of two uniform draws, in every row: P(t <= x) = x^2.
    assert (t <= 0.5).float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert (r[longer] >= 0.5).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_velocity_is_the_teachers_where_there_is_one() -> None:
    x = torch.randn(4, 3, 2, 2)
    draws = Draws(0, "distill", range(4))
    batch = Batch(
        {"latent": x}, torch.arange(4), range(4), torch.zeros(4), draws, time_shift=2.0, latent_shape=(3, 2, 2)
    )
    objective = MeanFlow()
    alone = objective.points(Models(linear_u, linear_u), batch)
    assert torch.equal(alone.v, draws.normal("noise", (3, 2, 2)) - x)
    taught = objective.points(Models(linear_u, linear_u, lambda z, t, y: A * z), batch)
    assert torch.equal(taught.z, alone.z) and torch.equal(taught.v, A * alone.z)


def batch_of(data: dict[str, Tensor], y: Tensor) -> Batch:
    draws = Draws(0, "test", range(len(y)))
    return Batch(data, y, range(len(y)), torch.zeros(len(y)), draws, time_shift=1.0, latent_shape=())


def test_flow_matching_of_the_right_velocity_is_zero() -> None:
    """z = (1 - t) x + t e, so its velocity is (z - x) / t."""
    x, y = torch.randn(6, 3, 2, 2), torch.arange(6)

    def velocity(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return (z - x) / expand_to(t, z)

    def loss(v) -> float:
        return float(FlowMatching()(Models(v, v), batch_of({"latent": x}, y)).value)

    assert loss(velocity) < 1e-6
    assert loss(lambda z, t, y: velocity(z, t, y) + 2) == pytest.approx(4, rel=1e-4)


def test_chord_of_the_true_flow_is_its_average_velocity() -> None:
    """With states of the linear flow, float64; every pair of a trajectory is one of them."""
    noise, times = torch.randn(6, 3, 2, 2, dtype=torch.float64), torch.linspace(1, 0, 5).expand(6, 5)
    states = torch.stack([noise * torch.exp(A * expand_to(t - 1, noise)) for t in times.T], 1)

    def loss(states: Tensor) -> float:
        objective, batch = CMT(pairs=3), batch_of({"states": states, "times": times}, torch.arange(6))
        return float(objective(Models(linear_u, linear_u), batch).value)

    assert loss(states) < 1e-12  # states are taken in float32
    states[:, 0] += 0.1
    assert loss(states) > 1e-4
