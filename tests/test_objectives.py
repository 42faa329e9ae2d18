"""The losses and du/dt, against closed forms.

For the linear field v(z, t) = a z the flow is z_s = z_t exp(a (s - t)), so the average velocity over [r, t] is
u(z, r, t) = z (1 - exp(-a (t - r))) / (t - r), and its total derivative follows from u = v - (t - r) du/dt.
"""

import pytest
import torch
from torch import Tensor

from mfkit.benchmark.rates import peak_bytes
from mfkit.flow.derivative import central_difference, jvp
from mfkit.flow.losses import chord_matching, flow_matching, mean_flow
from mfkit.flow.times import interpolate, per_row
from mfkit.models.dit import AverageVelocityDiT, DiTConfig
from mfkit.models.layers import attention

A = -1.7


def linear_u(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
    interval = per_row(t - r, z)
    return torch.where(interval > 0, z * (-torch.expm1(-A * interval)) / interval.clamp(min=1e-12), A * z)


def rows(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 3, 2, 2, generator=generator, dtype=dtype)
    r = torch.tensor([0.1, 0.0, 0.5, 0.3, 0.9, 0.2], dtype=dtype)
    t = torch.tensor([0.7, 1.0, 0.5, 0.31, 0.999, 0.6], dtype=dtype)
    return z, r, t, torch.arange(6)


def exact_derivative(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return (A * z - linear_u(z, r, t, y)) / per_row(t - r, z)


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
        channels=8, side=2, classes=3, width=16, depth=1, heads=2, head_width=16, head_depth=1, head_heads=2
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


@pytest.mark.parametrize("method", [jvp, central_difference(1e-4)])
def test_perfect_average_velocity_has_no_mean_flow_loss(method) -> None:
    z, r, t, y = rows()
    loss = mean_flow(linear_u, method, z, r, t, y, A * z)
    assert loss.squared_error < 1e-6
    assert mean_flow(lambda *a: linear_u(*a) + 0.1, method, z, r, t, y, A * z).squared_error > 1e-3


def test_one_point_velocity_of_a_single_image() -> None:
    """With one image x the marginal velocity is the one-point estimate, the paths are straight, and u = (z - x) / t."""
    x, noise = torch.randn(2, 6, 3, 2, 2, dtype=torch.float64)
    x = x[:1].expand(6, -1, -1, -1)
    _, r, t, y = rows()
    z, v = interpolate(x, noise, t)

    def u(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return (z - x[: len(z)]) / per_row(t, z)

    assert mean_flow(u, jvp, z, r, t, y, v).squared_error < 1e-20
    long = r < t
    z_r = interpolate(x, noise, r)[0]
    assert chord_matching(u, z[long], z_r[long], r[long], t[long], y[long]).squared_error < 1e-20


def test_rows_without_interval_see_the_velocity_only() -> None:
    z, _, t, y = rows()

    def forbidden(*_: object) -> Tensor:
        raise AssertionError("du/dt was taken although r = t in every row")

    loss = mean_flow(linear_u, forbidden, z, t, t, y, A * z + 0.5)
    assert loss.squared_error.item() == pytest.approx(0.25)


def test_target_carries_no_gradient_and_weights_are_constants() -> None:
    """The gradient is that of sum_i ||e_i||^2 / (||e_i||^2 + c), with target and denominator held fixed."""
    z, r, t, y = rows()
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    loss = mean_flow(lambda *a: scale * linear_u(*a), jvp, z, r, t, y, A * z, power=1.0, offset=0.01)
    loss.value.backward()
    with torch.no_grad():
        u = linear_u(z, r, t, y)
        slope = 1.3 * jvp(linear_u, z, r, t, y, A * z)
        error = 1.3 * u - (A * z - per_row(t - r, z) * slope)
        weights = 1 / (error.square().flatten(1).sum(1) + 0.01)
        expected = (weights * (2 * error * u).flatten(1).sum(1)).mean()
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(expected.item(), rel=1e-9)


def test_derivative_is_taken_of_the_bare_network_and_the_loss_of_the_wrapped_one() -> None:
    z, r, t, y = rows()
    calls = []

    def named(name: str):
        return lambda *a: (calls.append((name, len(a[0]))), linear_u(*a))[1]

    mean_flow(named("wrapped"), central_difference(1e-3), z, r, t, y, A * z, bare_u=named("bare"))
    moving = int((r < t).sum())
    assert calls == [("bare", moving), ("bare", moving), ("wrapped", len(z))]


def test_flow_matching_of_the_right_velocity_is_zero() -> None:
    x, noise = torch.randn(2, 6, 3, 2, 2)
    t, y = torch.rand(6), torch.arange(6)

    def velocity(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return (z - x) / per_row(t, z)

    assert flow_matching(velocity, x, noise, t, y).value < 1e-6
    off = flow_matching(lambda z, t, y: velocity(z, t, y) + 2, x, noise, t, y)
    assert off.value.item() == pytest.approx(4, rel=1e-4)


def test_chord_of_the_true_flow_is_its_average_velocity() -> None:
    z_t, r, t, y = (values[[0, 1, 3, 4, 5]] for values in rows())
    z_r = z_t * torch.exp(A * per_row(r - t, z_t))
    assert chord_matching(linear_u, z_t, z_r, r, t, y).value < 1e-20
    assert chord_matching(linear_u, z_t, z_r + 0.1, r, t, y).value > 1e-4
