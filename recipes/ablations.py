"""Judges what recipes/ablations.sh trained: writes ablations.md and a picture for each question.

python recipes/ablations.py OUT
python recipes/ablations.py --unshift TRAJECTORIES FOLDER    # the same states, their times labelled without the shift
python recipes/ablations.py --separate-drops distill …       # mfkit, with labels dropped anew in each evaluation
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import webdataset as wds
from judge import COLUMNS, DIGITS, Figures, Judge, spread, table
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from objectives import measure
from torch import Tensor

from mfkit.commands.main import main as mfkit
from mfkit.data.codecs import array_bytes
from mfkit.data.dataset import IndexedTars, read_batch
from mfkit.data.latents import open_latents
from mfkit.flow.objectives import OBJECTIVES
from mfkit.flow.objectives.base import Batch, Loss, Models
from mfkit.flow.objectives.mean_flow import MeanFlow
from mfkit.flow.times import shift_times

PIXELS = "pixels_distance_to_train"
DROPPED = 0.1


@dataclass(frozen=True)
class Question:
    """What is compared: files of a seed's ablations, or of its run, by what the table calls them."""

    title: str
    models: dict[str, str]
    logs: bool = False
    """Whether the picture shows loss and gradient norm over the steps besides."""


QUESTIONS = {
    "start": Question(
        "1. Distilling from random weights, the teacher's, the mid-trained student's",
        {
            "ablations/start-random": "random",
            "ablations/start-teacher": "teacher",
            "ablations/start-cmt": "mid-trained",
        },
        logs=True,
    ),
    "teachers": Question(
        "2. MFD, MFT, MFD then MFT, by the strength of the teacher",
        {
            f"ablations/{model}-{share}" if share > 1 or model.startswith("m") else model: (
                f"{name}, teacher of 1/{share} of the steps"
            )
            for share in (8, 2, 1)
            for model, name in {
                "teacher": "teacher, 50 steps",
                "cmt": "mid-trained",
                "mfd": "MFD",
                "mft": "MFT",
                "mfd-mft": "MFD, MFT",
            }.items()
        },
    ),  # fmt: skip
    "times": Question(
        "3. Times of the trajectory",
        {"cmt": "true", "ablations/times-unshifted": "labelled without the shift"},
    ),
    "drops": Question(
        "4. Labels dropped",
        {"ablations/drops-once": "once a row", "ablations/drops-separate": "in each evaluation anew"},
        logs=True,
    ),
    "derivative": Question(
        "5. The derivative",
        {
            "ablations/derivative-jvp": "JVP",
            **{
                f"ablations/derivative-{step}": f"difference, {step}"
                for step in ("1e-4", "1e-3", "5e-3", "1e-2", "0.1")
            },
        },
    ),
    "weight": Question(
        "6. The weight of a row",
        {
            "ablations/weight-0": "p = 0",
            "ablations/weight-0.5": "p = 0.5",
            "ablations/weight-1": "p = 1",
            "ablations/weight-1-large-eps": "p = 1, eps 0.01 of the row's numbers",
        },
        logs=True,
    ),  # fmt: skip
    "guidance": Question(
        "7. Guidance: the mid-trained student of guided trajectories",
        {
            "ablations/teacher-d": "teacher, without",
            "ablations/cmt-d": "without",
            "ablations/cmt-guided-1.5": "W = 1.5",
            "ablations/cmt-guided-2.5": "W = 2.5",
            "ablations/cmt-guided-2.5-inside": "W = 2.5 in [0.1, 0.9]",
        },
    ),  # fmt: skip
}


def main(out: Path) -> None:
    runs = [(folder, Judge(folder / "rae.safetensors", DIGITS)) for folder in sorted(out.glob("seed-*"))]
    text = ""
    for key, question in QUESTIONS.items():
        figures = {
            name: [measure(folder, judge, model) for folder, judge in runs] for model, name in question.models.items()
        }
        norms: dict[str, dict[str, str]] = {}
        if question.logs:
            found = {name: [_norms(folder / model) for folder, _ in runs] for model, name in question.models.items()}
            norms = {"gradient norm": {name: spread(values, "{:.1f}") for name, values in found.items()}}
        text += f"### {question.title}\n\n" + table(f"{len(runs)} seeds", figures, norms) + "\n"
        logs = {name: _log(runs[0][0] / model) for model, name in question.models.items()} if question.logs else {}
        _picture(out / f"ablation-{key}.png", question.title, figures, logs)
    (out / "ablations.md").write_text(text)
    print(text, end="")


def _log(model: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in model.with_name(f"{model.name}.log.jsonl").read_text().splitlines()]


def _norms(model: Path) -> float:
    """The mean norm of the gradient over the second half of a run."""
    norms = [line["grad_norm"] for line in _log(model)]
    return mean(norms[len(norms) // 2 :])


def _picture(path: Path, title: str, figures: dict[str, list[Figures]], logs: dict[str, list[dict[str, Any]]]) -> None:
    """Distances in features and pixels; and, of the first seed, error and gradient norm over the steps."""
    figure = Figure(figsize=(16 if logs else 9, 1.5 + 0.35 * max(6, len(figures))), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(1, 4 if logs else 2)
    for axes, key in zip(panels, list(COLUMNS)[:2], strict=False):
        values = [[found[key] for found in some] for some in figures.values()]
        spreads = [stdev(some) if len(some) > 1 else 0 for some in values]
        axes.barh(list(figures), [mean(some) for some in values], xerr=spreads)
        axes.invert_yaxis()
        axes.set(title=f"Fréchet distance, {COLUMNS[key][0]}", xlim=(0, None))
    for axes, (key, named) in zip(
        panels[2:], {"mse": "squared error", "grad_norm": "gradient norm"}.items(), strict=False
    ):
        for name, lines in logs.items():
            axes.plot([line["step"] for line in lines], [line[key] for line in lines], label=name)
        axes.set(title=named, xlabel="step", yscale="log")
        axes.legend()
    figure.savefig(path, dpi=100)


def unshift(trajectories: str, folder: Path) -> None:
    """Writes the states with the times that they would have on a uniform grid."""
    data = open_latents("trajectories", trajectories)
    assert isinstance(data.dataset, IndexedTars)
    shift = 4.0  # of the preset digits
    folder.mkdir()
    with wds.TarWriter(str(folder / "00000.tar.partial"), compress=False) as writer:
        for index in range(len(data.dataset)):
            sample = read_batch(data.dataset, [index])
            times = sample["times"][0]
            plain = times / (shift - (shift - 1) * times)
            assert torch.allclose(shift_times(plain, shift), times, atol=1e-6)
            writer.write(
                {
                    "__key__": f"{index:09d}", "states.npy": array_bytes(sample["states"][0].numpy()),
                    "times.npy": array_bytes(plain.numpy()), "cls": str(int(sample["label"][0])).encode(),
                }
            )  # fmt: skip
    (folder / "00000.tar.partial").rename(folder / "00000.tar")


class SeparateDrops(MeanFlow):
    """Mean flow whose evaluations of u each drop labels of their own; give --class-dropout 0."""

    def __call__(self, models: Models, batch: Batch) -> Loss:
        null, count = models.unwrapped.config.num_classes, 0  # type: ignore[attr-defined]
        points = self.points(models, replace(batch, y=_dropped(batch, batch.y, "class-dropout", null)))
        inner = batch.y[points.longer]

        def drops_anew(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
            nonlocal count
            count += 1
            own = _dropped(batch, batch.y, f"class-dropout {count}", null)[points.longer]
            return models.unwrapped(z, r, t, own if len(y) == len(inner) else y)

        return self.loss(replace(models, unwrapped=drops_anew), points)


def _dropped(batch: Batch, y: Tensor, stream: str, null: int) -> Tensor:
    return y.masked_fill(batch.draws.uniform(stream) < DROPPED, null)


if __name__ == "__main__":
    if sys.argv[1] == "--unshift":
        unshift(sys.argv[2], Path(sys.argv[3]))
    elif sys.argv[1] == "--separate-drops":
        OBJECTIVES["mean-flow"] = SeparateDrops
        sys.argv[1:2] = []
        mfkit()
    else:
        main(Path(sys.argv[1]))
