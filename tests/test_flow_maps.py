"""The shelf of flow maps, against exact ones.

Data N(0, S^2) and noise N(0, 1) have the flow X_r = z d(r) / d(t), d(t)^2 = (1 - t)^2 S^2 + t^2. Its velocity is
v = z (t - (1 - t) S^2) / d(t)^2, its average u = (z - X_r) / (t - r). Of data in two modes, N(-1, S^2) and N(1, S^2),
the velocity is known too, and is not linear in z; its flow is solved in fine steps.
"""

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import failed
from safetensors.torch import load_file
from torch import Tensor, nn

from mfkit.config.presets import PRESETS, PresetName, resolve_training
from mfkit.flow.objectives import OBJECTIVES, objectives_of
from mfkit.flow.objectives.arrival import Arrival
from mfkit.flow.objectives.base import GRADIENT, Batch, Models, Objective
from mfkit.flow.objectives.cmt import CMT
from mfkit.flow.objectives.ctm import CTM
from mfkit.flow.objectives.drifting import Drifting
from mfkit.flow.objectives.imm import IMM
from mfkit.flow.objectives.interval import IntervalObjective, Points
from mfkit.flow.objectives.interval_split import IntervalSplit
from mfkit.flow.objectives.mean_flow import MeanFlow
from mfkit.flow.objectives.reflow import Reflow
from mfkit.flow.objectives.self_split import SelfSplit
from mfkit.flow.random import Draws
from mfkit.flow.times import expand_to
from mfkit.models.dit import AverageVelocityDiT, DiTConfig
from mfkit.models.files import open_generator
from mfkit.runtime.precision import autocast
from mfkit.setting import own_defaults

S = 0.6


def deviation(t: Tensor) -> Tensor:
    return ((1 - t).square() * S**2 + t.square()).sqrt()


def velocity(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return z * expand_to((t - (1 - t) * S**2) / deviation(t).square(), z)


def exact(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """u(z, r, t), and its limit v(z, t) where r = t."""
    same = expand_to((t - r).abs() < 1e-9, z).bool()
    whole = z * expand_to(1 - deviation(r) / deviation(t), z) / expand_to((t - r).clamp(min=1e-9), z)
    return torch.where(same, velocity(z, t, y), whole)


def two_modes(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """E[e - x | z]: the modes' own velocities, by how likely z is of each."""
    center, spread = expand_to(1 - t, z), expand_to(deviation(t), z)
    slope = expand_to((t - (1 - t) * S**2) / deviation(t).square(), z)
    off = torch.stack([z - center, z + center])
    likely = (-(off / spread).square() / 2).softmax(0)
    own = off * slope - torch.tensor([1.0, -1.0], dtype=z.dtype).view(2, *(1 for _ in z.shape))
    return (likely * own).sum(0)


def solved(z: Tensor, r: Tensor, t: Tensor, y: Tensor, steps: int = 24) -> Tensor:
    """u of it: X_r by the classical method of Runge and Kutta."""
    moved, h = z, -(t - r) / steps
    for step in range(steps):
        at = t + step * h
        k1 = two_modes(moved, at, y)
        k2 = two_modes(moved + expand_to(h / 2, z) * k1, at + h / 2, y)
        k3 = two_modes(moved + expand_to(h / 2, z) * k2, at + h / 2, y)
        k4 = two_modes(moved + expand_to(h, z) * k3, at + h, y)
        moved = moved + expand_to(h / 6, z) * (k1 + 2 * k2 + 2 * k3 + k4)
    same = expand_to((t - r).abs() < 1e-9, z).bool()
    return torch.where(same, two_modes(z, t, y), (z - moved) / expand_to((t - r).clamp(min=1e-9), z))


class Flow(NamedTuple):
    velocity: Callable[..., Tensor]
    average: Callable[..., Tensor]
    error: float
    """Of the average velocity."""


FLOWS = {"one mode": Flow(velocity, exact, 1e-12), "two modes": Flow(two_modes, solved, 1e-6)}


def wrong(z: Tensor, r: Tensor, t: Tensor, y: Tensor, of: Callable[..., Tensor] = exact) -> Tensor:
    return 1.2 * of(z, r, t, y) + 0.1 * expand_to((t - r).sin(), z)


def points(progress: float = 1.0, v: Callable[..., Tensor] = velocity) -> Points:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 2, 2, 2, generator=generator, dtype=torch.float64)
    r = torch.tensor([0.1, 0.05, 0.5, 0.3, 0.9, 0.2], dtype=torch.float64)
    t = torch.tensor([0.7, 0.95, 0.5, 0.6, 0.95, 0.6], dtype=torch.float64)
    y = torch.arange(6)
    inner = (r < t).nonzero().squeeze(1)
    whole = torch.full((6,), progress, dtype=torch.float64)
    return Points(z, r, t, y, v(z, t, y), inner, whole, torch.rand(6, generator=generator).double())


def objective(name: str, **settings: object) -> IntervalObjective:
    kind = OBJECTIVES[name]
    assert issubclass(kind, IntervalObjective)
    return kind(**settings)


def error(loss: IntervalObjective, u: Callable[..., Tensor], flow: Flow, source: str) -> float:
    """:param source: whether the target asks a teacher or the student for a velocity."""
    given = flow.velocity if source == "teacher" else None
    return float(loss.loss(Models(u, u, given), points(v=flow.velocity)).mse) ** 0.5


def cases(losses: Sequence[Any], flows: Collection[str] = tuple(FLOWS)) -> list[Any]:
    """Each with a teacher and without, where it can be, and on each flow; variants on the first."""
    found = []
    for values in losses:
        (loss, *rest) = values if isinstance(values, tuple) else (values,)
        for source, stage in (("teacher", "distill"), ("student", "bootstrap")):
            if stage not in loss.stages or (source == "student" and getattr(loss, "tangent", "") == "teacher"):
                continue
            for flow in list(flows)[: 1 if loss.variant_of else None]:
                found.append(pytest.param(loss, *rest, source, flow, id=f"{loss.name}-{source}-{flow}"))
    return found


NO_STATE = dict(target_ema=0.0)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("loss", "source", "flow"),
    cases([
        *(MeanFlow(derivative="jvp", tangent=tangent) for tangent in ("velocity", "teacher", "own")),
        *(objective(name, derivative="jvp") for name in ("imf", "hybrid", "scm", "facm", "ayf", "tim", "temf")),
        MeanFlow(derivative="jvp", interval_weight="short-first", max_correction=0.5, normalise=0.1),
        SelfSplit(),
        objective("psd"),
        objective("shortcut", **NO_STATE),
    ]),
)  # fmt: skip
def test_the_exact_average_velocity_has_no_loss(loss: IntervalObjective, source: str, flow: str) -> None:
    of = FLOWS[flow]
    assert error(loss, of.average, of, source) < of.error
    assert error(loss, partial(wrong, of=of.average), of, source) > 1e-2


@pytest.mark.fast
@pytest.mark.parametrize(
    ("loss", "setting", "order", "source", "flow"),
    cases([
        (MeanFlow(derivative="central"), "finite_difference_step", 2),
        (objective("modular"), "finite_difference_step", 2),
        (IntervalSplit(), "final_first_leg", 2),
        (objective("soflow"), "final_first_leg", 2),
        (objective("alphaflow"), "final_first_leg", 2),
        (objective("emf", first_leg=0.002), "final_first_leg", 2),
        (objective("consistency"), "final_first_leg", 2),
        (objective("ect"), "final_first_leg", 2),
        (Arrival(), "arrival_step", 2),
        (Arrival(through="slope"), "arrival_step", 2),
        (objective("lmd"), "arrival_step", 2),
        (objective("lsd"), "arrival_step", 2),
        (objective("tvm", **NO_STATE), "arrival_step", 2),
    ]),
)  # fmt: skip
def test_its_loss_vanishes_at_the_stated_order(
    loss: IntervalObjective, setting: str, order: int, source: str, flow: str
) -> None:
    of = FLOWS[flow]
    errors = [error(replace(loss, **{setting: step}), of.average, of, source) for step in (4e-3, 2e-3)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)
    assert errors[1] < 1e-3 < error(loss, partial(wrong, of=of.average), of, source)


class Scaled(nn.Module):
    """w u(z, r, t), and how many rows it was asked for, with and without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.1, dtype=torch.float64))
        self.passes = 0

    def forward(self, z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.passes += len(z) * (GRADIENT if torch.is_grad_enabled() else 1)
        return self.w * wrong(z, r, t, y)


INTERVAL = [kind for kind in OBJECTIVES.values() if issubclass(kind, IntervalObjective)]


@pytest.mark.fast
@pytest.mark.parametrize(("loss", "source", "flow"), cases([kind() for kind in INTERVAL], ["one mode"]))
def test_no_gradient_reaches_a_target(loss: IntervalObjective, source: str, flow: str) -> None:
    """Targets are taken with the unwrapped network, here another one, or with averaged weights."""
    averaged, found = getattr(loss, "target_ema", 0), []
    for w in (0.9, 0.8):
        own, target = Scaled(), Scaled()
        state = {"w": torch.tensor(w, dtype=torch.float64)} if averaged else {}
        value = loss.loss(
            Models(own, target, FLOWS[flow].velocity if source == "teacher" else None, state), points()
        ).value
        value.backward()
        assert own.w.grad is not None and own.w.grad.abs() > 1e-6 and target.w.grad is None
        found.append(own.w.grad.item())
    assert (found[0] != found[1]) == bool(averaged)


def samples(loss: Objective, stage: str, count: int = 6) -> Batch:
    """So many of what an objective reads."""
    if loss.reads == "trajectories":
        return replace(trajectory_batch(), draws=Draws(0, stage, range(5)))
    shape = (count, *([loss.class_group] if loss.class_group else []), 2, 2, 2)
    return Batch(
        {"latent": torch.randn(shape)}, torch.zeros(count, dtype=torch.long), range(count), torch.full((count,), 0.3),
        Draws(0, stage, range(count)), 1.0, (2, 2, 2),
    )  # fmt: skip


@pytest.mark.fast
@pytest.mark.parametrize("shift", [1.0, 4.0])
@pytest.mark.parametrize("name", ["arrival", "freeflow", "mean-flow"])
def test_short_intervals_first_weighs_one_in_the_mean(name: str, shift: float) -> None:
    loss = objective(name, interval_weight="short-first")
    batch = replace(samples(loss, "distill", 8000), time_shift=shift, progress=torch.zeros(8000))
    found = loss.points(Models(exact, exact), batch)
    weight = loss.weight(found)
    assert weight is not None and weight[found.r < found.t].mean() == pytest.approx(1, abs=0.03)


@pytest.mark.fast
def test_weights_of_an_interval_by_hand() -> None:
    p = points(progress=0.25)
    p = replace(p, r=torch.full_like(p.t, 0.2), t=torch.full_like(p.t, 0.7))
    for name, expected in (
        ("temf", 1 / (1.25 * 1.25**0.5)),
        ("tim", 1 / (math.tan(0.7) - math.tan(0.2) + 1) ** 0.5),
        ("facm", math.sin(0.35 * math.pi)),
        ("short-first", 0.25 + 0.75 * 0.5 / (2 / 3)),
    ):
        weight = MeanFlow(interval_weight=name).weight(p)
        assert weight is not None and weight.tolist() == pytest.approx(6 * [expected]), name
    assert MeanFlow().weight(p) is None


@pytest.mark.fast
def test_shares_are_drawn_and_shrink_as_stated() -> None:
    tim = objective("tim")
    found = tim.points(Models(exact, exact), samples(tim, "bootstrap", 8000))
    longer = found.r < found.t
    assert longer.double().mean() == 0.5 and (found.r[longer] == 0).double().mean() == pytest.approx(0.2, abs=0.02)
    alphaflow = objective("alphaflow")
    assert isinstance(alphaflow, IntervalSplit)
    share = alphaflow.share(torch.tensor([0.0, 0.5, 1.0]), torch.ones(3))
    assert share.tolist() == pytest.approx([1, 0.5025, 0.005], abs=1e-5)


OTHERS = [
    (CMT(pairs=3), "midtrain"), (CTM(pairs=3), "midtrain"), (IMM(), "bootstrap"),
    (Drifting(generated=4, extra=6, real=5), "bootstrap"),
]  # fmt: skip


@pytest.mark.fast
@pytest.mark.parametrize(("loss", "stage"), OTHERS, ids=lambda value: getattr(value, "name", value))
def test_other_objectives_cost_what_they_say_and_stop_gradients(loss: Objective, stage: str) -> None:
    own, target = Scaled(), Scaled()
    batch = samples(loss, stage)
    loss(Models(own, target), batch).value.backward()
    assert (own.passes + target.passes) / (len(batch.y) * loss.rows_per_sample) == loss.forward_passes(stage)
    assert own.w.grad is not None and own.w.grad.abs() > 1e-6 and target.w.grad is None


@pytest.mark.fast
def test_reflow_learns_its_pairs_and_before_them_fresh_noise() -> None:
    """A half of the way through the annealing: e = sqrt(3)/2 of the trajectory's noise and 1/2 of a fresh one."""
    batch = samples(Reflow(), "train-teacher")
    fresh, t = batch.draws.normal("noise", (2, 2, 2)), batch.shifted_times("time")
    first, x = (batch.data["states"][:, place].float() for place in (0, -1))
    for progress, e in ((0.0, fresh), (0.25, 0.75**0.5 * first + 0.5 * fresh), (0.5, first), (0.9, first)):
        asked: list[Tensor] = []

        def straight(z: Tensor, at: Tensor, y: Tensor, e: Tensor = e, asked: list[Tensor] = asked) -> Tensor:
            asked.append(z - (expand_to(1 - t, z) * x + expand_to(t, z) * e))
            return e - x

        found = Reflow(anneal=0.5)(Models(straight, straight), replace(batch, progress=torch.full((5,), progress)))
        assert float(found.mse) < 1e-10 and asked[0].abs().max() < 1e-5, progress


@pytest.mark.fast
@pytest.mark.parametrize("stage", ["distill", "bootstrap"])
@pytest.mark.parametrize("kind", INTERVAL, ids=lambda kind: kind.name)
def test_forward_passes_are_as_many_as_said(kind: type[IntervalObjective], stage: str) -> None:
    if stage not in kind.stages:
        pytest.skip("not of this stage")
    loss = kind(derivative="central") if issubclass(kind, MeanFlow) else kind()
    network, asked = Scaled(), 0

    def counted(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        nonlocal asked
        asked += len(z)
        return velocity(z, t, y)

    state = {"w": torch.tensor(0.9, dtype=torch.float64)} if getattr(loss, "target_ema", 0) else {}
    rows = 16
    draws = Draws(0, stage, range(rows))
    batch = Batch(
        {"latent": torch.randn(rows, 2, 2, 2).double()}, torch.zeros(rows, dtype=torch.long), range(rows),
        torch.full((rows,), 0.5), draws, 1.0, (2, 2, 2),
    )  # fmt: skip
    loss(Models(network, network, counted if stage == "distill" else None, state), batch)
    assert (network.passes + asked) / rows == pytest.approx(loss.forward_passes(stage))


def gradient(loss: IntervalObjective, at: Points) -> float:
    network = Scaled()
    loss.loss(Models(network, network, velocity), at).value.backward()
    assert network.w.grad is not None
    return network.w.grad.item()


def by_hand(formula) -> float:
    """The gradient of a loss as a paper writes it: formula(u with its gradient, sg u)."""
    network = Scaled()
    with torch.enable_grad():
        formula(network).backward()
    assert network.w.grad is not None
    return network.w.grad.item()


@pytest.mark.fast
def test_soflow_as_published_is_the_split_up_to_a_half() -> None:
    """-mean(u . sg(delta w)) with delta = (f_t - f_l) / (t - l), w = 1 / (mean delta^2 + 0.01)."""
    p, share = points(), 0.05
    inner = p.take(p.longer)

    def published(network: Scaled) -> Tensor:
        z, r, t, y = inner.z, inner.r, inner.t, inner.y
        between = t - share * (t - r)
        moved = z - expand_to(t - between, z) * inner.v
        u = network(z, r, t, y)
        with torch.no_grad():
            f_t = z - expand_to(t - r, z) * u
            f_l = moved - expand_to(between - r, z) * network(moved, r, between, y)
            delta = (f_t - f_l) / expand_to(t - between, z)
            w = 1 / (delta.square().flatten(1).mean(1) + 0.01)
        return -(u * delta * expand_to(w, z)).flatten(1).mean(1).mean()

    size = p.z[0].numel()
    split = IntervalSplit(first_leg=share, final_first_leg=share, norm_p=1.0, norm_eps=0.01 * size)
    only_inner = Points(*(getattr(inner, name) for name in ("z", "r", "t", "y", "v")), torch.arange(len(inner.z)),
                        inner.progress, inner.third)  # fmt: skip
    assert gradient(split, only_inner) == pytest.approx(2 * by_hand(published), rel=1e-9)


@pytest.mark.fast
def test_the_loss_on_v_of_imf_has_the_gradient_of_mean_flow_along_its_own_tangent() -> None:
    """V = u + (t - r) sg(du/dt along u(z, t, t)) against e - x."""
    p = points()

    def published(network: Scaled) -> Tensor:
        with torch.no_grad():
            tangent = network(p.z, p.t, p.t, p.y)
            ones = torch.ones_like(p.t)
            slope = torch.func.jvp(lambda z, t: network(z, p.r, t, p.y), (p.z, p.t), (tangent, ones))[1]
            slope[p.r == p.t] = 0
        u = network(p.z, p.r, p.t, p.y)
        total = (u + expand_to(p.t - p.r, u) * slope - p.v).square().flatten(1).sum(1)
        return (total / (total.detach() + 0.01)).mean()

    assert gradient(objective("imf", derivative="jvp"), p) == pytest.approx(by_hand(published), rel=1e-9)


@pytest.mark.fast
@pytest.mark.parametrize(("progress", "warm"), [(0.0, 0.0), (0.05, 0.5), (1.0, 1.0)])
def test_scm_is_mean_flow_at_r_0_whose_error_is_normalised(progress: float, warm: float) -> None:
    p = points(progress)
    p = replace(p, r=torch.zeros_like(p.t), longer=torch.arange(6))

    def published(network: Scaled) -> Tensor:
        with torch.no_grad():
            ones = torch.ones_like(p.t)
            u, slope = torch.func.jvp(lambda z, t: network(z, p.r, t, p.y), (p.z, p.t), (p.v, ones))
            g = u - p.v + warm * expand_to(p.t, u) * slope
            g = g / expand_to(g.square().flatten(1).mean(1).sqrt() + 0.1, g)
        return (network(p.z, p.r, p.t, p.y) - u + g).square().flatten(1).sum(1).mean()

    assert gradient(objective("scm", derivative="jvp"), p) == pytest.approx(by_hand(published), rel=1e-9)


@pytest.mark.fast
def test_facm_has_the_gradient_of_its_published_loss_on_consistency() -> None:
    """At r = 0 against u - A g, A = 1 - sqrt(1 - t), g bounded, weighed by sin(pi t / 2) over the root of the mean.

    Without the offset of 1e-3. Ours has the sum over the 8 numbers where FACM has their mean.
    """
    p = points()
    p = replace(p, r=torch.zeros_like(p.t), longer=torch.arange(6))

    def published(network: Scaled) -> Tensor:
        with torch.no_grad():
            u, slope = torch.func.jvp(lambda z, t: network(z, p.r, t, p.y), (p.z, p.t), (p.v, torch.ones_like(p.t)))
            g = (u - p.v + expand_to(p.t, u) * slope).clamp(-0.05, 0.05)
            target = u - expand_to(1 - (1 - p.t).sqrt(), u) * g
        e = (network(p.z, p.r, p.t, p.y) - target).square().flatten(1).mean(1)
        return ((p.t * torch.pi / 2).sin() * e / e.detach().sqrt()).mean()

    facm = objective("facm", derivative="jvp", norm_eps=0.0, max_correction=0.05)
    assert gradient(facm, p) == pytest.approx(by_hand(published) * 8**0.5, rel=1e-9)


@pytest.mark.fast
def test_a_bounded_correction_moves_u_by_the_bound_at_most() -> None:
    """The gradient with respect to u is twice the bounded difference, where r < t; elsewhere it is the whole one."""
    p, bound = points(), 0.05
    shift = torch.zeros_like(p.z, requires_grad=True)

    def u(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return wrong(z, r, t, y) + (shift if torch.is_grad_enabled() else 0)

    loss = MeanFlow(derivative="jvp", norm_p=0.0, max_correction=bound).loss(Models(u, u), p)
    loss.value.backward()
    assert shift.grad is not None
    moved = shift.grad * len(p.z) / 2
    assert moved[p.r < p.t].abs().max() <= bound + 1e-12
    assert torch.allclose(moved[p.r == p.t], (wrong(p.z, p.r, p.t, p.y) - p.v)[p.r == p.t])


def trajectory_batch(states: int = 6, average: Callable[..., Tensor] = exact) -> Batch:
    z = torch.randn(5, 2, 2, 2, dtype=torch.float64)
    times = torch.linspace(1, 0, states, dtype=torch.float64).expand(5, -1)
    y = torch.zeros(5, dtype=torch.long)
    stored = torch.stack([z - expand_to(1 - t, z) * average(z, t, torch.ones_like(t), y) for t in times.T], 1)
    draws = Draws(0, "midtrain", range(5))
    return Batch({"states": stored, "times": times}, y, range(5), torch.zeros(5), draws, 1.0, (2, 2, 2))


@pytest.mark.fast
@pytest.mark.parametrize("flow", FLOWS)
def test_noise_alone_is_enough_for_the_average_velocity(flow: str) -> None:
    """FreeFlow's points, t = 1 and no velocity of theirs."""
    of, p, loss = FLOWS[flow], points(), objective("freeflow", arrival_step=2e-3)
    p = replace(p, t=torch.ones_like(p.t), v=torch.zeros_like(p.z), longer=torch.arange(6))
    given = Models(of.average, of.average, of.velocity)
    assert float(loss.loss(given, p).mse) ** 0.5 < 1e-3
    other = partial(wrong, of=of.average)
    assert float(loss.loss(Models(other, other, of.velocity), p).mse) ** 0.5 > 1e-2


@pytest.mark.fast
@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("loss", [CMT(pairs=8), CTM(pairs=8)], ids=lambda loss: loss.name)
def test_losses_on_trajectories_vanish_for_their_flow(loss: CMT, flow: str) -> None:
    exact = FLOWS[flow].average
    batch = trajectory_batch(average=exact)
    batch.data["states"] = batch.data["states"].float()
    batch = replace(batch, data={name: value.double() for name, value in batch.data.items()})
    assert float(loss(Models(exact, exact), batch).mse) < 1e-10
    assert float(loss(Models(wrong, wrong), batch).mse) > 1e-3


def test_two_equal_groups_have_the_same_moments() -> None:
    """Of one particle, whose map is exact for a single image, so that a = b: the least loss there is."""
    x = torch.randn(1, 1, 2, 2, 2).expand(6, 1, -1, -1, -1)
    draws = Draws(0, "bootstrap", range(6))
    batch = Batch({"latent": x}, torch.zeros(6, dtype=torch.long), range(6), torch.zeros(6), draws, 1.0, (2, 2, 2))

    def straight(z: Tensor, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return (z - x[0]) / expand_to(t, z)

    same = IMM(particles=1)(Models(straight, straight), batch)
    other = IMM(particles=1)(Models(lambda *a: 1.5 * straight(*a), straight), batch)
    assert float(same.mse) < 1e-6 and abs(float(same.value)) < 1e-3 < float(other.value)


@pytest.mark.fast
def test_the_map_of_a_flow_has_the_same_moments_from_two_noise_levels() -> None:
    """On the Gaussian, whose map is known: what is left falls like 1 / M, as the distance of two equal samples does.

    With the wide gap the second group is of the true marginal at s, so that other maps are far from it.
    """

    def discrepancy(particles: int, u: Callable[..., Tensor], gap: float) -> float:
        x = S * torch.randn(8, particles, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        draws = Draws(0, "bootstrap", range(8))
        batch = Batch({"latent": x}, torch.zeros(8, dtype=torch.long), range(8), torch.zeros(8), draws, 1.0, (2, 1, 1))
        return float(IMM(particles=particles, gap=gap)(Models(u, u), batch).value)

    for gap in (8, 1):
        few, many, more = (discrepancy(particles, exact, gap) for particles in (64, 256, 1024))
        assert 2.5 < few / many < 6 and 2.5 < many / more < 6
    for other in (solved, lambda *at: 2 * exact(*at), lambda z, *at: 0 * z):
        assert discrepancy(1024, other, 1) > 3 * more


@pytest.mark.fast
@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.125, 0.2), (0.25, 0.4), (0.5, 0.8), (1.0, 0.8)])
def test_modular_gives_a_share_of_the_slope_a_gradient(progress: float, share: float) -> None:
    """Of |u - v + (t - r) (P du/dt + (1 - P) sg(du/dt))|^2; P grows to 0.8 over the first half of the run."""
    p = points(progress)

    def published(network: Scaled) -> Tensor:
        u, slope = torch.func.jvp(lambda z, t: network(z, p.r, t, p.y), (p.z, p.t), (p.v, torch.ones_like(p.t)))
        partly = share * slope + (1 - share) * slope.detach()
        return (u - p.v + expand_to(p.t - p.r, u) * partly).square().flatten(1).sum(1).mean()

    loss = objective("modular", norm_p=0.0, slope_gradient=0.8, slope_gradient_warmup=0.5, finite_difference_step=1e-4)
    assert gradient(loss, p) == pytest.approx(by_hand(published), rel=1e-5)


@pytest.mark.fast
def test_every_objective_of_distillation_is_told_where_it_is_a_case_of_another() -> None:
    for name, kind in objectives_of("distill").items():
        if kind.variant_of:
            assert issubclass(kind, OBJECTIVES[kind.variant_of]) and kind() != OBJECTIVES[kind.variant_of]()
            assert kind.name == name


def trained(mfkit, command: str) -> list[float]:
    done = mfkit(f"{command} --steps 2 --batch-size 16 --log-every 1 -o out.safetensors --overwrite")
    assert done.code == 0, f"{command}\n{done.err}"
    return [json.loads(line)["mse"] for line in Path("out.log.jsonl").read_text().splitlines()]


@pytest.mark.fast
@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_undoes_what_makes_a_variant(preset: PresetName) -> None:
    """Its values are of a command's first objective; those of the user go before all."""
    for stage in ("distill", "bootstrap"):
        for name, kind in objectives_of(stage).items():
            if not issubclass(kind, IntervalObjective):
                continue
            alone, found = kind(), resolve_training(stage, preset, {"objective": name})[1]
            assert all(getattr(found, own) == getattr(alone, own) for own in own_defaults(kind)), name
            mine = resolve_training(stage, preset, {"objective": name, "norm_p": 0.25})[1]
            assert isinstance(mine, IntervalObjective) and mine.norm_p == 0.25
    facm = resolve_training("distill", preset, {"objective": "facm"})[1]
    assert isinstance(facm, MeanFlow)
    assert (facm.norm_p, facm.max_correction, facm.ratio_to_data, facm.interval_weight) == (0.5, 1, 1, "facm")


def test_each_of_the_shelf_trains_by_one_flag(mfkit, chain: Path) -> None:
    teacher, student = f"--teacher {chain}/teacher.safetensors", f"--init {chain}/cmt.safetensors"
    commands = {"distill": f"distill {teacher} {student}", "bootstrap": f"bootstrap {student}"}
    found = {
        f"{stage} {name}": trained(mfkit, f"{command} --objective {name}")
        for stage, command in commands.items()
        for name, kind in objectives_of(stage).items()
        if issubclass(kind, (IntervalObjective, IMM))
    }
    found["midtrain ctm"] = trained(mfkit, f"midtrain {chain}/traj {teacher} --objective ctm")
    found["reflow"] = trained(mfkit, f"train-teacher {chain}/traj --objective reflow")
    for name, values in found.items():
        assert len(values) == 2 and all(0 < value < 100 for value in values), name


def test_a_teacher_goes_on_from_another(mfkit, chain: Path) -> None:
    init = f"train-teacher {chain}/traj --objective reflow --init {chain}/teacher.safetensors"
    trained(mfkit, f"{init} --learning-rate 0 --time-shift 3")
    before, after = open_generator(chain / "teacher.safetensors"), open_generator(Path("out.safetensors"))
    assert all(torch.equal(*pair) for pair in zip(before.network.parameters(), after.network.parameters(), strict=True))
    assert after.description.time_shift == 3 != before.description.time_shift
    assert after.artifact.inputs["init"].digest == before.artifact.digest
    trained(mfkit, init)
    assert open_generator(Path("out.safetensors")).description.time_shift == before.description.time_shift
    Path("out.safetensors").rename("straight.safetensors")
    trained(mfkit, f"distill --teacher straight.safetensors --init {chain}/cmt.safetensors")  # with the first's latents
    failed(mfkit(f"{init} --model S -o x.safetensors"), 2, "--model: with --init")
    failed(mfkit(f"{init} --classes 3 -o x.safetensors"), 2, "--classes: with --init")


def test_what_has_no_teacher_no_latents_or_too_few_bits_is_refused(mfkit, chain: Path) -> None:
    bootstrap = f"bootstrap --init {chain}/cmt.safetensors -o x.safetensors"
    distill = f"distill --teacher {chain}/teacher.safetensors -o x.safetensors"
    for command, words in (
        (f"{distill} --objective lmd --target-ema 0.9", ("--target-ema: all of the target is the teacher's",)),
        (f"{distill} --objective freeflow --ratio-to-data 1", ("--ratio-to-data means nothing beside --free",)),
        (f"{distill} --objective arrival --free --ratio-r-equals-t 0.5", ("means nothing beside --free",)),
        (f"{bootstrap} --objective arrival --free", ("--free learns from a teacher alone",)),
        (f"{bootstrap} --velocity teacher", ("--velocity teacher: bootstrap has no teacher",)),
        (f"{bootstrap} --tangent teacher", ("--tangent teacher: bootstrap has no teacher",)),
        (f"{distill} --objective freeflow --latents {chain}/latents", ("looks at no latents",)),
        (f"{distill} --objective arrival --precision bf16", ("float32 or tf32",)),
        (f"{distill} --slope-gradient 0.5 --derivative jvp", ("--slope-gradient", "central difference")),
        (f"{bootstrap} --objective imm --batch-size 18", ("does not divide by the 4",)),
        (f"{distill} --objective soflow --first-leg-shrinks 0.5 0.5", ("give A < B",)),
    ):
        failed(mfkit(command), 2, *words)


def test_the_target_weights_are_the_stated_average(mfkit, chain: Path) -> None:
    """In each checkpoint, from those of the one before."""
    command = (
        f"bootstrap --init {chain}/cmt.safetensors --objective shortcut --target-ema 0.8 --steps 3 --batch-size 8 "
        "--micro-batch 4 --save-every 1 --keep 3 --learning-rate 1e-2 -o out.safetensors"
    )
    kept: dict[int, dict[str, Tensor]] = {}
    monitor = pytest.MonkeyPatch()
    from mfkit.training import checkpoint

    save = checkpoint.save

    def saved(output: Path, step: int, *rest, **options) -> None:
        save(output, step, *rest, **options)
        kept[step] = load_file(output.with_suffix(f".checkpoint-{step:07d}.safetensors"))

    with monitor.context() as patch:
        patch.setattr(checkpoint, "save", saved)
        done = mfkit(command)
    assert done.code == 0, done.err
    assert sorted(kept) == [1, 2, 3]
    names = [name.removeprefix("state.") for name in kept[1] if name.startswith("state.")]
    assert len(names) > 20
    for name in names:
        before, after = kept[1][f"state.{name}"], kept[2][f"state.{name}"]
        assert torch.allclose(after, 0.8 * before + 0.2 * kept[2][f"model.{name}"], atol=1e-6)
    assert any((kept[1][f"state.{name}"] != kept[1][f"model.{name}"]).any() for name in names)


def late_student() -> AverageVelocityDiT:
    torch.manual_seed(0)
    config = DiTConfig(
        channels=8, side=2, num_classes=3, width=16, depth=3, heads=2, head_width=16, head_depth=1, head_heads=2,
        late_r=True,
    )  # fmt: skip
    network = AverageVelocityDiT(config)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


@pytest.mark.fast
def test_a_student_with_a_late_r_takes_several_in_one_pass_of_its_encoder() -> None:
    """The same values; its encoder runs once, its head at the other r for the rows that are asked for."""
    network, passes = late_student(), []
    network.blocks[0].register_forward_hook(lambda _, given, out: passes.append(("encoder", len(out))))
    network.blocks[-1].register_forward_hook(lambda _, given, out: passes.append(("head", len(out))))
    z, t, y = torch.randn(4, 8, 2, 2), torch.rand(4), torch.arange(4)
    rows = torch.tensor([0, 2, 3])
    one_by_one = torch.stack([network(z, r, t, y)[rows] for r in (t / 2, 0 * t)])
    passes.clear()
    u, others = network(z, t, t, y, rows, torch.stack([t[rows] / 2, 0 * t[rows]]))
    assert passes == [("encoder", 4), ("head", 4), ("head", 3), ("head", 3)]
    assert torch.allclose(u, network(z, t, t, y)) and torch.allclose(others, one_by_one, atol=1e-6)
    assert u.requires_grad and not others.requires_grad
    assert (others[0] - others[1]).abs().max() > 1e-3


@pytest.mark.fast
@pytest.mark.parametrize("loss", [Arrival(), SelfSplit(), MeanFlow(tangent="own", derivative="central")])
def test_losses_by_a_late_r_are_those_of_single_evaluations(loss: IntervalObjective) -> None:
    p = points()
    p = replace(p, z=torch.randn(6, 8, 2, 2), r=p.r.float(), t=p.t.float(), y=p.y % 4, progress=p.progress.float(),
                third=p.third.float(), v=torch.randn(6, 8, 2, 2))  # fmt: skip
    network = late_student()
    found = []
    for late in (True, False):
        models = Models(network, network if late else lambda *inputs: network(*inputs))
        network.zero_grad()
        value = loss.loss(models, p).value
        value.backward()
        gradients = torch.cat([w.grad.flatten() for w in network.parameters() if w.grad is not None])
        found.append((value.item(), gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert (found[0][1] - found[1][1]).norm() < 1e-3 * found[1][1].norm()


@pytest.mark.fast
@pytest.mark.parametrize("loss", [SelfSplit(), MeanFlow(tangent="own")])
def test_bfloat16_keeps_the_gradient(loss: IntervalObjective) -> None:
    """Weights cast for a target, without a gradient, are cast again for the step (by autocast, from torch 2.10 on)."""
    p, found = points(), {}
    p = replace(p, z=torch.randn(6, 8, 2, 2), r=p.r.float(), t=p.t.float(), y=p.y % 4, progress=p.progress.float(),
                third=p.third.float(), v=torch.randn(6, 8, 2, 2))  # fmt: skip
    for precision in ("float32", "bf16"):
        network = late_student()
        network.late_r = False
        with autocast(precision, torch.device("cpu")):
            value = loss.resolved(precision).loss(Models(network, network), p).value
        value.backward()
        found[precision] = torch.cat([w.grad.flatten() for w in network.parameters() if w.grad is not None])
    assert (found["bf16"] - found["float32"]).norm() < 0.05 * found["float32"].norm()


def test_late_r_is_in_the_file_and_starts_as_the_teacher(mfkit, chain: Path) -> None:
    teacher = f"--teacher {chain}/teacher.safetensors"
    done = mfkit(
        f"midtrain {chain}/traj {teacher} --late-r --steps 1 --learning-rate 0 --batch-size 8 -o s.safetensors"
    )
    assert done.code == 0, done.err
    student, of = open_generator(Path("s.safetensors")), open_generator(chain / "teacher.safetensors")
    assert student.network_config.late_r
    z, r, t, y = torch.randn(3, *student.latent_shape), torch.rand(3), torch.ones(3), torch.arange(3)
    assert torch.allclose(student.network(z, r, t, y), of.network(z, t, y), atol=1e-6)
    trained(mfkit, f"bootstrap --init s.safetensors --latents {chain}/latents --objective imf")
    failed(mfkit(f"distill {teacher} --init {chain}/cmt.safetensors --late-r -o x.safetensors"), 2, "a student already")


def test_the_plan_knows_each_objective(mfkit) -> None:
    def plan(*names: str) -> dict:
        chosen = " ".join(f"--objective {name}" for name in names)
        done = mfkit(f"plan --preset digits {chosen} --json")
        assert done.code == 0, done.err
        return json.loads(done.out)["stages"]

    usual, variants = plan(), {"freeflow", "soflow", "lmd", "lsd", "ayf", "ect"}
    for name, kind in OBJECTIVES.items():
        if not issubclass(kind, IntervalObjective | IMM) or (kind.variant_of and name not in variants):
            continue
        found = plan(name)
        for stage in ("distill", "bootstrap"):
            if stage not in kind.stages:
                continue
            assert found[stage]["objective"] == name
            ratio = found[stage]["flops_per_step"] / usual[stage]["flops_per_step"]
            assert ratio == pytest.approx(kind().forward_passes(stage) / MeanFlow().forward_passes(stage))
            assert (found[stage]["bytes_read_per_step"] == 0) == (not kind().needs_latents)
    for name, stage in (("drifting", "bootstrap"), ("frechet", "bootstrap"), ("reflow", "train-teacher")):
        assert plan(name)[stage]["objective"] == name
    both = plan("soflow", "ctm")
    assert [both[stage]["objective"] for stage in ("midtrain", "distill", "bootstrap")] == ["ctm", "soflow", "soflow"]
    assert "distill soflow" in mfkit("plan --preset digits --objective soflow").out
    failed(mfkit("plan --preset digits --objective nonsense"), 2, "--objective nonsense: no stage")


@pytest.mark.fast
@pytest.mark.parametrize("late_r", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize("kind", INTERVAL, ids=lambda kind: kind.name)
def test_batches_of_one_kind_of_rows(kind: type[IntervalObjective], ratio: float, late_r: bool) -> None:
    """All with r = t, or none, as a micro-batch of one row is: the network then sees no rows of the other kind."""
    network = late_student()
    network.late_r = late_r
    draws = Draws(0, "distill", range(2))
    y = torch.zeros(2, dtype=torch.long)
    batch = Batch({"latent": torch.randn(2, 8, 2, 2)}, y, range(2), torch.zeros(2), draws, 1.0, (8, 2, 2))

    def teacher(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return network(z, t, t, y)

    models = Models(network, network, teacher)
    objective = kind(ratio_r_equals_t=ratio)
    if issubclass(kind, MeanFlow):
        objective = replace(objective, derivative="central")
    loss = objective(replace(models, state=objective.initial_state(models)), batch)
    loss.value.backward()
    assert loss.value.isfinite() and all(w.grad is None or w.grad.isfinite().all() for w in network.parameters())
