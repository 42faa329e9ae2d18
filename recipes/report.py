"""Judges a run of digits.sh or emoji.sh: prints its figures as JSON and draws grid.png.

python recipes/report.py OUT            # digits; its picture has real ones, reconstructions, each model's
python recipes/report.py OUT FOLDER     # FOLDER/train and FOLDER/heldout, learnt with mirror images
python recipes/report.py --table OUT…   # Markdown of the reports of several runs
"""

import json
import sys
from pathlib import Path
from statistics import mean

import torch
from judge import DIGITS, Data, Figures, Images, Judge, images, table

from mfkit.data.grid import write_grid

MODELS = {
    "teacher": "teacher",
    "mfd": "student, distilled",
    "mft": "student, the paper's chain",
    "drift": "student, drifting",
}
IMAGES_A_CLASS = 6


def report(out: Path, data: Data) -> dict:
    judge = Judge(out / "rae.safetensors", data)
    size = judge.rae.config.image_size
    folders = {name: sorted(out.glob(f"samples/{model}-*")) for model, name in MODELS.items()}
    models = {name: [images(str(folder), size) for folder in found] for name, found in folders.items() if found}
    held_out = {
        "held-out images": [judge.held_out],
        "held-out images, encoded and decoded": [judge.reconstructed(judge.held_out)],
    }
    figures: dict[str, Figures] = {}
    for name, sets in (models | held_out).items():
        found = [judge.figures(one) for one in sets]
        figures[name] = {key: mean(one[key] for one in found) for key in found[0]} | {"sets": len(found)}
    _draw(out / "grid.png", [judge.train, judge.reconstructed(judge.train), *(sets[0] for sets in models.values())])
    student, teacher = figures[MODELS["drift"]], figures[MODELS["teacher"]]
    ratios = {key: student[key] / teacher[key] for key in student if "distance" in key}
    return {"figures": figures, "drifting_over_teacher": ratios}


def _draw(path: Path, sets: list[Images]) -> None:
    """A row per class, the first images of each set."""
    classes = range(int(sets[0][1].max()) + 1)
    rows = [[pixels[labels == label][:IMAGES_A_CLASS] for pixels, labels in sets] for label in classes]
    grid = torch.cat([part for row in rows for part in row]).float() / 255
    write_grid(path, grid, IMAGES_A_CLASS * len(sets), gap_every=IMAGES_A_CLASS)


def table_of(runs: list[Path]) -> str:
    reports = [json.loads((run / "report.json").read_text())["figures"] for run in runs]
    return table(f"{len(runs)} seeds", {name: [figures[name] for figures in reports] for name in reports[0]})


if __name__ == "__main__":
    if sys.argv[1] == "--table":
        print(table_of([Path(run) for run in sys.argv[2:]]), end="")
        sys.exit()
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    data = Data(str(folder / "train"), str(folder / "heldout"), mirror=True) if folder else DIGITS
    print(json.dumps(report(Path(sys.argv[1]), data), indent=2))
