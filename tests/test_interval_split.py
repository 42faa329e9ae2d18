"""The interval split, against mean flow, of which it is the difference quotient."""

import json
from pathlib import Path

import pytest
import torch
from conftest import failed
from test_objectives import A, linear_u, rows
from torch import Tensor

from mfkit.flow.objectives.base import Models
from mfkit.flow.objectives.interval import Points
from mfkit.flow.objectives.interval_split import IntervalSplit
from mfkit.flow.objectives.mean_flow import MeanFlow


def points(progress: float = 0.0) -> Points:
    z, r, t, y = rows()
    inner = (r < t).nonzero().squeeze(1)
    return Points(z, r, t, y, A * z, inner, torch.full((len(z),), progress), torch.rand(len(z)))


def of_share(share: float) -> IntervalSplit:
    return IntervalSplit(first_leg=share, final_first_leg=share)


@pytest.mark.fast
def test_the_exact_average_velocity_is_the_fixed_point_up_to_the_share_squared() -> None:
    exact = Models(linear_u, linear_u)
    errors = [float(of_share(share).loss(exact, points()).mse) ** 0.5 for share in (0.02, 0.01)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


@pytest.mark.fast
def test_its_gradient_tends_to_that_of_mean_flow() -> None:
    """For a u that is not exact, and a weight that is not 1."""

    def gradient(objective: MeanFlow | IntervalSplit) -> float:
        scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

        def u(*a: Tensor) -> Tensor:
            return scale * linear_u(*a)

        objective.loss(Models(u, u), points()).value.backward()
        assert scale.grad is not None
        return scale.grad.item()

    of_mean_flow = gradient(MeanFlow(derivative="jvp", norm_p=0.7, norm_eps=0.1))
    for share, tolerance in ((1e-2, 0.05), (1e-4, 5e-4)):
        split = IntervalSplit(first_leg=share, final_first_leg=share, norm_p=0.7, norm_eps=0.1)
        assert gradient(split) == pytest.approx(of_mean_flow, rel=tolerance)


@pytest.mark.fast
@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.1), (0.5, (0.1 * 0.002) ** 0.5), (1.0, 0.002)])
def test_the_first_leg_shrinks_over_the_run(progress: float, share: float) -> None:
    seen: list[Tensor] = []

    def unwrapped(z: Tensor, r: Tensor, s: Tensor, y: Tensor) -> Tensor:
        seen.append(s)
        return linear_u(z, r, s, y)

    IntervalSplit().loss(Models(linear_u, unwrapped), points(progress))
    _, r, t, _ = rows()
    assert torch.allclose(seen[0], (t - share * (t - r))[r < t])


@pytest.mark.fast
def test_a_leg_of_the_whole_interval_is_the_velocity() -> None:
    u = Models(lambda *a: 0 * a[0], linear_u)
    assert float(of_share(1.0).loss(u, points()).mse) == pytest.approx(float((A * rows()[0]).square().mean()))


def test_it_is_chosen_on_the_command_line(mfkit, chain: Path) -> None:
    distill = (
        f"distill --teacher {chain}/teacher.safetensors --init {chain}/cmt.safetensors --latents {chain}/latents "
        "--steps 2 --batch-size 16 --log-every 1"
    )
    done = mfkit(f"{distill} --objective interval-split --first-leg 0.2 -o split.safetensors")
    assert done.code == 0, done.err
    assert mfkit(f"{distill} -o mean.safetensors").code == 0
    logs = [json.loads(Path(f"{name}.log.jsonl").read_text().splitlines()[0]) for name in ("split", "mean")]
    assert logs[0]["mse"] != logs[1]["mse"]
    plan = json.loads(mfkit(f"{distill} --objective interval-split --first-leg 0.2 -o x.safetensors --dry-run").out)
    assert plan["settings"]["objective"] == "interval-split" and plan["settings"]["first_leg"] == 0.2
    assert "finite_difference_step" not in plan["settings"]
    foreign = "--finite-difference-step is of --objective mean-flow, not of interval-split"
    failed(mfkit(f"{distill} --objective interval-split --finite-difference-step 0.1 -o x.safetensors"), 2, foreign)
    failed(mfkit(f"{distill} --first-leg 0.2 -o x.safetensors"), 2, "--first-leg is of --objective interval-split")
    failed(mfkit(f"{distill} --objective interval-split --precision bf16 -o x.safetensors"), 2, "float32 or tf32")
