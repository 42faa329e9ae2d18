"""Judges what recipes/ablations.sh trained: writes ablations.md and a picture for each question.

python recipes/ablations.py OUT EMOJI QUESTION...            # EMOJI may be empty
python recipes/ablations.py --unshift TRAJECTORIES FOLDER    # the same states, their times labelled without the shift
python recipes/ablations.py --separate-drops distill …       # mfkit, with labels dropped anew in each evaluation
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import webdataset as wds
from judge import COLUMNS, DIGITS, Data, Figures, Judge, spread, table
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
from mfkit.flow.objectives.interval import Points, r_equals_t
from mfkit.flow.objectives.mean_flow import MeanFlow
from mfkit.flow.random import Draws
from mfkit.flow.times import shift_times
from mfkit.inference.guided import frozen_velocity
from mfkit.models.files import open_generator

LOGGED = {"mse": ("squared error", "{:.4f}"), "grad_norm": ("gradient norm", "{:.1f}")}
"""What logs tell beside the figures, and how a table writes it."""
DROPPED = 0.1


@dataclass(frozen=True)
class Question:
    """What is compared: files of a seed's ablations, or of its run, by what the table calls them."""

    title: str
    models: dict[str, str]
    logs: bool = False
    """Whether the picture shows loss and gradient norm over the steps besides."""


def _guided(ways: Mapping[str, str]) -> dict[str, str]:
    """The teacher, then the mid-trained student of its trajectories, each in all ways."""
    models = {"ends": "teacher", "cmt": "mid-trained"}
    return {f"ablations/{model}-{way}": f"{name}, {how}" for model, name in models.items() for way, how in ways.items()}


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
            "cmt" if (model, share) == ("cmt", 1) else f"ablations/{model}-{share}": f"1/{share} of the steps: {name}"
            for share in (8, 2, 1)
            for model, name in {
                "ends": "teacher",
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
        "7. Guidance: the teacher, and the mid-trained student of its trajectories",
        _guided(
            {
                "d": "without",
                "guided-1.5": "W = 1.5",
                "guided-2.5": "W = 2.5",
                "guided-2.5-inside": "W = 2.5 in [0.1, 0.9]",
            }
        ),
    ),
}
OF_EMOJI = {
    "guidance-emoji": Question(
        "7. The same of emoji",
        _guided(
            {
                "guided-1": "without",
                "guided-2": "W = 2",
                "guided-2-inside": "W = 2 in [0.1, 0.95]",
                "guided-4": "W = 4",
            }
        ),
    ),
}


def main(out: Path, emoji: str, *questions: str) -> None:
    asked = {name: question for name, question in QUESTIONS.items() if name in questions}
    text = _answers(out, asked, dict.fromkeys(sorted(out.glob("seed-*")), DIGITS))
    if emoji:
        drawn = Data(f"{emoji}/images/train", f"{emoji}/images/heldout", mirror=True)
        text += _answers(out, OF_EMOJI, {Path(emoji): drawn})
    (out / "ablations.md").write_text(text)
    print(text, end="")


def _answers(out: Path, questions: Mapping[str, Question], folders: Mapping[Path, Data]) -> str:
    """Markdown; and a picture of each in ``out``."""
    runs = [(folder, Judge(folder / "rae.safetensors", data)) for folder, data in folders.items()]
    heading = f"{len(runs)} seeds" if len(runs) > 1 else "one seed"
    text = ""
    for key, question in questions.items():
        figures = {
            name: [measure(folder, judge, model) for folder, judge in runs] for model, name in question.models.items()
        }
        logged = {
            title: {
                name: spread([_late(folder / model, key) for folder, _ in runs], digits)
                for model, name in question.models.items()
            }
            for key, (title, digits) in LOGGED.items()
            if question.logs
        }
        text += f"### {question.title}\n\n" + table(heading, figures, logged) + "\n"
        if key == "weight":
            text += _rows_table([_gradients_by_rows(folder) for folder in folders]) + "\n"
            text += _first_steps(list(folders)) + "\n"
        logs = {name: _log(runs[0][0] / model) for model, name in question.models.items()} if question.logs else {}
        _picture(out / f"ablation-{key}.png", question.title, figures, logs)
    return text


WEIGHTS = {"p = 0": (0.0, 1e-3), "p = 0.5": (0.5, 1e-3), "p = 1": (1.0, 1e-3), "p = 1, eps 5.12": (1.0, 5.12)}
"""Exponent and eps of the weight of a row, 1 / (||error||^2 + eps)^p."""
STARTS = {
    "cmt": "mid-trained",
    "ablations/weight-1": "distilled from it, p = 1",
    "ablations/from-teacher-1e-3": "50 steps from the teacher, p = 1",
}
ROWS = 256


def _gradients_by_rows(folder: Path) -> dict[str, dict[str, float]]:
    """||error||^2, the median, and the gradient's norm by each weight: of rows with r = t alone, and of the others."""
    dataset = open_latents("latents", str(folder / "latents")).dataset
    assert isinstance(dataset, IndexedTars)
    latents = read_batch(dataset, list(range(ROWS)))
    teacher = frozen_velocity(open_generator(folder / "teacher.safetensors").network, torch.device("cpu"))
    found = {}
    for model, name in STARTS.items():
        file = open_generator(folder / f"{model}.safetensors")
        models = Models(file.network, file.network, teacher)
        draws = Draws(1000, "rows", list(range(ROWS)))
        batch = Batch(
            {"latent": latents["latent"].float()}, latents["label"], range(ROWS), torch.zeros(ROWS), draws,
            file.description.time_shift, file.latent_shape,
        )  # fmt: skip
        points = MeanFlow().points(models, batch)
        equal = r_equals_t(torch.arange(ROWS), MeanFlow().ratio_r_equals_t)
        for rows, of in ((equal, "r = t"), (~equal, "r < t")):
            indices = rows.nonzero().squeeze(1)
            one_by_one = [_loss(models, points, index[None], of == "r < t").mse for index in indices]
            numbers = float(points.z[0].numel())
            found[f"{name}, {of}"] = {"error": float(torch.stack(one_by_one).median()) * numbers}
            for weight, (norm_p, norm_eps) in WEIGHTS.items():
                file.network.zero_grad()
                _loss(models, points, indices, of == "r < t", norm_p, norm_eps).value.backward()
                squares = [p.grad.square().sum() for p in file.network.parameters() if p.grad is not None]
                found[f"{name}, {of}"][weight] = float(torch.stack(squares).sum().sqrt())
    return found


def _loss(
    models: Models, points: Points, rows: Tensor, longer: bool, norm_p: float = 0.0, norm_eps: float = 1e-3
) -> Loss:
    """Of these rows alone, all of which have r < t, or none."""
    inner = torch.arange(len(rows) if longer else 0)
    objective = MeanFlow(derivative="central", norm_p=norm_p, norm_eps=norm_eps)
    return objective.loss(models, replace(points.take(rows), longer=inner))


def _first_steps(folders: list[Path]) -> str:
    """The gradient's norm in a distillation from the teacher: of the first step, and the mean of the 49 after."""
    lines = [["from the teacher, p = 1", "gradient norm, step 1", "steps 2 to 50"], ["---"] * 3]
    for eps in ("1e-3", "5.12"):
        norms = [[line["grad_norm"] for line in _log(folder / f"ablations/from-teacher-{eps}")] for folder in folders]
        cells = [spread([run[0] for run in norms], "{:.1f}"), spread([mean(run[1:]) for run in norms], "{:.1f}")]
        lines.append([f"eps {eps}", *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rows_table(runs: list[dict[str, dict[str, float]]]) -> str:
    heads = ["rows", "norm of the error squared, median", *(f"gradient norm, {weight}" for weight in WEIGHTS)]
    lines = [heads, ["---"] * len(heads)]
    for rows in runs[0]:
        lines.append([rows, *(spread([run[rows][key] for run in runs], "{:.2g}") for key in runs[0][rows])])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _log(model: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in model.with_name(f"{model.name}.log.jsonl").read_text().splitlines()]


def _late(model: Path, key: str) -> float:
    """The mean of a log's numbers over the second half of a run."""
    values = [line[key] for line in _log(model)]
    return mean(values[len(values) // 2 :])


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
        axes.set(title=f"Fréchet distance, {COLUMNS[key][0]}", xscale="log")
        axes.grid(axis="x", alpha=0.3)
    panels[1].set_yticklabels([])
    for axes, (key, (named, _)) in zip(panels[2:], LOGGED.items(), strict=False):
        for name, lines in logs.items():
            axes.plot([line["step"] for line in lines], [line[key] for line in lines], label=name)
        axes.set(title=named, xlabel="step", yscale="log")
    if logs:
        panels[-1].legend(fontsize=8)
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
        main(Path(sys.argv[1]), *sys.argv[2:])
