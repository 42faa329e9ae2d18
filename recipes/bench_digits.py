"""What options of mfkit do to the digits: ``python recipes/bench_digits.py DIGITS PART`` prints JSON.

DIGITS is a folder that recipes/digits.sh made. Parts: ``pairs`` (pairs per trajectory in mid-training), ``precision``
(of sampling), ``order`` (of the samples in shards), ``pipe`` (trajectories piped into mid-training), ``memory`` (of
sampling). Intermediate files go to the working folder.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import mfkit
from mfkit.data.codecs import array_bytes
from mfkit.data.dataset import IndexedTars
from mfkit.data.latents import open_latents
from mfkit.data.writer import write_shard
from mfkit.flow.random import Draws
from mfkit.flow.solvers import solve, time_grid
from mfkit.flow.times import interpolate

STEPS = 1000
SHAPE = (32, 4, 4)
SAMPLES = 1000


def run(command: str, **environment: str) -> float:
    """Seconds that a shell line takes."""
    begin = time.perf_counter()
    subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], check=True, stdout=subprocess.DEVNULL, env=os.environ | environment
    )
    return time.perf_counter() - begin


def log_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(output).with_suffix(".log.jsonl").read_text().splitlines()]


@torch.no_grad()
def pairs(digits: Path) -> list[dict[str, Any]]:
    """Errors on 1,000 trajectories of the teacher that no one was trained on, after steps of 64 pairs each."""
    teacher = mfkit.load(digits / "teacher.safetensors")
    noise = Draws(1, "new", range(SAMPLES)).normal("noise", SHAPE)
    y, times = torch.arange(SAMPLES) % 10, time_grid(12, 4.0)
    states = solve(lambda z, t: teacher(z, t, y), noise, times, "heun")
    found = []
    for count in (1, 2, 4, 8):
        output = f"pairs-{count}.safetensors"
        run(
            f"mfkit midtrain {digits}/traj --teacher {digits}/teacher.safetensors -o {output} --pairs {count} "
            f"--steps {STEPS} --overwrite"
        )
        student = mfkit.load(output)

        def error(later: int, earlier: int, student: Any = student) -> float:
            t, r = (times[k].expand(SAMPLES) for k in (later, earlier))
            chord = (states[later] - states[earlier]) / (t - r).view(-1, 1, 1, 1)
            return float((student(states[later], r, t, y) - chord).square().mean())

        between = [error(i, j) for i in range(12) for j in range(i + 1, 13)]
        found.append(
            {
                "pairs": count, "trajectories_per_step": 64 // count, "error": sum(between) / len(between),
                "error_noise_to_data": error(0, 12), "samples_per_second": log_of(output)[-1]["samples_per_second"],
            }
        )  # fmt: skip
    return found


def precision(digits: Path) -> list[dict[str, Any]]:
    """Fréchet distances of 2,000 images to the training digits."""
    found = []
    for model in ("teacher", "mft"):
        for name in ("float32", "bf16"):
            seconds = run(f"mfkit sample {digits}/{model}.safetensors -n 2000 -o drawn --precision {name} --overwrite")
            judged = subprocess.run(
                ["mfkit", "fid", "drawn", "--reference", "digits:train", "--features", digits / "rae.safetensors"],
                check=True, stdout=subprocess.PIPE,
            )  # fmt: skip
            distance = json.loads(judged.stdout)["frechet_distance"]
            found.append({"model": model, "precision": name, "frechet_distance": distance, "seconds": seconds})
    return found


@torch.no_grad()
def order(digits: Path) -> list[dict[str, Any]]:
    """A teacher trained on shards without an index, shuffled or sorted by label: its errors on the same samples."""
    dataset = open_latents("latents", str(digits / "latents")).dataset
    assert isinstance(dataset, IndexedTars)
    values = [dataset[i] for i in range(len(dataset))]
    latents = torch.stack([sample["latent"] for sample in values]).float()
    labels = [sample["label"] for sample in values]
    draws = Draws(1, "new", range(len(values)))
    t = draws.uniform("time")
    z, v = interpolate(latents, draws.normal("noise", SHAPE), t)
    orders = {
        "shuffled": torch.randperm(len(values), generator=torch.Generator().manual_seed(0)).tolist(),
        "sorted": sorted(range(len(values)), key=labels.__getitem__),
    }
    found = []
    for name, indices in orders.items():
        samples = [
            {"__key__": f"{k:06d}", "latent.npy": array_bytes(values[i]["latent"].numpy()), "cls": b"%d" % labels[i]}
            for k, i in enumerate(indices)
        ]
        for shard in range(10):
            write_shard(Path(name) / f"{shard:02d}.tar", samples[150 * shard : 150 * shard + 150])
        output = f"{name}.safetensors"
        run(
            f"mfkit train-teacher '{name}/*.tar' -o {output} --preset digits --classes 10 --steps {STEPS} "
            "--log-every 250 --overwrite"
        )
        network: Any = mfkit.load(output)
        error = (network(z, t, torch.tensor(labels)) - v).square().mean()
        logged = [line["mse"] for line in log_of(output)]
        found.append({"order": name, "mse_while_training": logged, "mse": float(error)})
    return found


def pipe(digits: Path) -> dict[str, float]:
    """2,560 trajectories and 320 steps on 8 pairs of each, a core per command: in turn, and at the same time."""
    teacher = f"--teacher {digits}/teacher.safetensors"
    options = f"{teacher} -o piped.safetensors --steps 320 --pairs 8 --overwrite --restart"
    one = {"OMP_NUM_THREADS": "1"}
    solve = run(f"mfkit trajectories {teacher} -n 2560 -o solved --overwrite", **one)
    train = run(f"mfkit midtrain solved {options}", **one)
    both = run(f"mfkit trajectories {teacher} -n 2560 -o - | mfkit midtrain - {options}", **one)
    return {"trajectories": solve, "midtrain": train, "in_turn": solve + train, "piped": both}


def memory(digits: Path) -> list[dict[str, Any]]:
    """Time and peak memory of one call that draws 2,000, and 50,000 images."""
    found = []
    for count in (2000, 50_000):  # the larger last: the system tells the largest of all
        seconds = run(f"mfkit sample {digits}/mft.safetensors -n {count} -o drawn.npz --overwrite")
        peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        found.append({"images": count, "seconds": seconds, "peak_memory_bytes": peak})
    return found


PARTS = {"pairs": pairs, "precision": precision, "order": order, "pipe": pipe, "memory": memory}


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[2] not in PARTS:
        sys.exit(f"usage: python {sys.argv[0]} DIGITS {'|'.join(PARTS)}")
    print(json.dumps(PARTS[sys.argv[2]](Path(sys.argv[1]).resolve()), indent=2))


if __name__ == "__main__":
    main()
