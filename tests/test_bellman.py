"""The cheapest grid of times: against all paths, on a flow whose best grid is known, and through the commands."""

import json
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from conftest import failed

from mfkit.flow.bellman import cheapest_path, step_costs


@pytest.mark.fast
@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_the_path_is_the_cheapest_of_all(steps: int) -> None:
    costs = torch.rand(8, 8, generator=torch.Generator().manual_seed(steps), dtype=torch.float64)
    costs = costs.masked_fill(torch.ones(8, 8).tril().bool(), float("inf"))
    paths = [(0, *between, 7) for between in combinations(range(1, 7), steps - 1)]
    best = min(paths, key=lambda path: sum(float(costs[i, j]) for i, j in pairwise(path)))
    assert cheapest_path(costs, steps) == list(best)


@pytest.mark.fast
def test_more_steps_than_times_are_refused() -> None:
    with pytest.raises(ValueError, match="the trajectories have 3"):
        cheapest_path(torch.zeros(4, 4), 4)


@pytest.mark.fast
def test_the_grid_is_dense_where_the_flow_bends() -> None:
    """z(t) = 1 for t > 1/2, and a parabola below: straight steps cost nothing above."""
    times = torch.linspace(1, 0, 17, dtype=torch.float64)
    bend = (0.5 - times).clamp(min=0)
    states = (1 + 4 * bend**2).view(1, -1, 1, 1, 1)
    velocity = (-8 * bend).view(-1, 1, 1, 1, 1)
    path = cheapest_path(step_costs(states, times, lambda i, j: velocity[i]), 4)
    assert 0.3 < float(times[path[1]]) <= 0.5 and len(path) == 5
    gaps = [float(times[i] - times[j]) for i, j in pairwise(path[1:])]
    assert max(gaps) - min(gaps) <= 1 / 16


def test_times_are_found_and_sampled_by(mfkit, chain: Path) -> None:
    sample = f"-n 10 --rae {chain}/rae.safetensors -o"
    for model in ("teacher", "mft"):
        done = mfkit(f"times {chain}/{model}.safetensors {chain}/traj --steps 2 -n 20 -o {model}.json")
        assert done.code == 0 and done.out == f"{model}.json\n", done.err
        found = json.loads(Path(f"{model}.json").read_text())
        assert len(found["times"]) == 3 and found["cost"] > 0
        command = f"sample {chain}/{model}.safetensors {sample} {model}.npz --times {model}.json"
        assert mfkit(command).code == 0
        import numpy as np

        conditions = json.loads(str(np.load(f"{model}.npz")["conditions"]))
        assert conditions["times"] == found["times"] and conditions["nfe"] == 2
    failed(mfkit(f"{command} --nfe 4 --overwrite"), 2, "--times says all of the grid")
    Path("odd.json").write_text('{"times": [1.0, 0.2, 0.3, 0.0], "cost": 1.0, "model": ""}')
    failed(mfkit(f"sample {chain}/mft.safetensors {sample} x.npz --times odd.json"), 3, "do not descend from 1 to 0")
    failed(mfkit(f"times {chain}/mft.safetensors {chain}/traj --steps 9 -o x.json"), 2, "the trajectories have 4")


def test_guided_trajectories_are_compared_with_guided_steps(mfkit, chain: Path, caplog) -> None:
    """A step of Euler between two neighbours is the solver's own, and costs nothing where the guidance is the same."""
    train = f"train-teacher {chain}/latents --steps 4 --batch-size 16 --class-dropout 0.5 -o t.safetensors"
    assert mfkit(f"{train} --learning-rate 3e-2").code == 0
    solve = "trajectories --teacher t.safetensors -n 12 --solver euler --solver-steps 4 --dtype float32 -o guided"
    assert mfkit(f"{solve} --guidance 3").code == 0
    times = "times t.safetensors guided --steps 4 -o x.json"
    assert mfkit(f"{times} --guidance 3").code == 0
    assert json.loads(Path("x.json").read_text())["cost"] < 1e-9
    failed(mfkit(f"{times} --overwrite"), 3, "guided was solved with guidance {'weight': 3.0", "not None")
    failed(mfkit(f"{times} --guidance 2 --overwrite"), 3, "give the same")
    failed(mfkit(f"times {chain}/teacher.safetensors guided --guidance 3 --steps 2 -o y.json"), 3, "by another teacher")
    failed(mfkit(f"times {chain}/mft.safetensors guided --guidance 3 --steps 2 -o y.json"), 2, "guidance is for a t")
    assert mfkit(f"sample {chain}/mft.safetensors -n 2 --rae {chain}/rae.safetensors -o x.npz --times x.json").code == 0
    assert "x.json was made for another generator" in caplog.text
