"""Judges what recipes/objectives.sh trained: writes table.md and objectives.png.

python recipes/objectives.py OUT
python recipes/objectives.py --steps SECONDS PROBE    # how many fit, by PROBE.json and PROBE.log.jsonl
"""

import json
import sys
from pathlib import Path
from statistics import mean, stdev

import torch
from judge import COLUMNS, DIGITS, Figures, Images, Judge, images, spread, table
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mfkit.artifacts.atomic import write_text
from mfkit.config.settings import SampleSettings
from mfkit.data.codecs import to_uint8
from mfkit.flow.objectives import OBJECTIVES
from mfkit.flow.random import Draws
from mfkit.inference.sampler import sampler_of
from mfkit.models.files import open_generator

_ONE_STEP = "teacher@1"
MODELS = {
    "teacher": "teacher, 50 steps",
    _ONE_STEP: "teacher, one step",
    "reflow@1": "reflow: the teacher on its own pairs, one step",
    "cmt": "mid-trained, where the rest start",
    "cmt-longer": "CMT from the teacher, for as long as the rest",
    "ctm": "CTM from the teacher: a stored leg, then u's map",
    "mean-flow-teacher": "mean flow, the teacher's velocity",
    "mean-flow-data": "mean flow, e − x",
    "imf": "iMF: mean flow along u(z, t, t)",
    "hybrid": "hybrid: e − x along the teacher's velocity",
    "scm": "sCM: mean flow at r = 0, normalised",
    "facm": "FACM: mean flow at r = 0, bounded, beside r = t",
    "ayf": "AYF: mean flow, normalised",
    "tim": "TiM: mean flow, weighed by tan t − tan r",
    "temf": "TEMF: mean flow, short intervals weighed more",
    "modular": "Modular: mean flow, a gradient through du/dt",
    "soflow": "SoFlow: a leg of v, then u's map",
    "alphaflow": "AlphaFlow: a leg of v, from the whole interval on",
    "emf": "EMF: a leg of v of 0.05, then u's map",
    "consistency": "consistency distillation: a leg of v at r = 0",
    "ect": "ECT: consistency by e − x, from the whole interval on",
    "self-split": "SplitMeanFlow: two legs of u's map",
    "psd": "PSD: two halves of u's map",
    "shortcut": "shortcut: two halves, averaged weights",
    "arrival": "arrival: the teacher's velocity where u arrives",
    "freeflow": "FreeFlow: arrival from noise alone",
    "lmd": "LMD: arrival, a gradient through du/dr",
    "lsd": "LSD: LMD by u's own velocity, and e − x",
    "tvm": "TVM: LSD by averaged weights",
    "imm": "IMM: moments from two noise levels",
    "drifting-two-sided-token": "drifting, two-sided, per token",
    "drifting-two-sided-latent": "drifting, two-sided, whole latent",
    "drifting-token-token": "drifting, token field, per token",
    "drifting-token-latent": "drifting, token field, whole latent",
    "drifting-sinkhorn-token": "drifting, Sinkhorn, per token",
    "drifting-sinkhorn-latent": "drifting, Sinkhorn, whole latent",
    "frechet-mean-token": "Fréchet, mean token (trains on RAE)",
    "frechet-latent": "Fréchet, whole latent (trains on RAE)",
    "frechet-rae": "Fréchet, picture encoded again (trains on RAE)",
    "drifting-then-frechet": "drifting, then Fréchet (mean token; trains on RAE)",
}
MODELS |= {name: f"{MODELS[name]} (experimental)" for name, kind in OBJECTIVES.items() if kind.experimental}
"""By model, or MODEL@EVALUATIONS where that is neither one of a student nor 50 of a teacher."""
IMAGES = 2000
_PIXELS = "pixels_distance_to_train"


MORE_STEPS = (2, 4)


def draw(model: Path, judge: Judge, seed: int, nfe: int | None = None) -> Images:
    file = open_generator(model)
    sampler = sampler_of(file.network, SampleSettings(nfe=nfe), file.description.time_shift)
    found = []
    for part in torch.arange(IMAGES).split(250):
        noise = Draws(seed, "sample", part.tolist()).normal("noise", file.latent_shape)
        with torch.no_grad():
            found.append(to_uint8(judge.rae.decode(sampler(noise, part % file.num_classes))))
    return torch.cat(found), torch.arange(IMAGES) % file.num_classes


def measure(folder: Path, judge: Judge, model: str, nfe: int | None = None) -> Figures:
    """The figures of a model, or of images in MODEL.npz, kept beside it.

    :param model: also MODEL@EVALUATIONS. :param nfe: None is one step of a student, 50 of a teacher.
    """
    model, _, own = model.partition("@")
    nfe = nfe or (int(own) if own else None)
    kept = folder / f"{model}.figures{f'-{nfe}' if nfe else ''}.json"
    if not kept.exists():
        drawn = folder / f"{model}.npz"
        seed = folder.name.removeprefix("seed-")
        noise = 1000 + (int(seed) if seed.isdigit() else 0)
        of = (
            images(str(drawn), judge.rae.config.image_size)
            if drawn.exists()
            else draw(folder / f"{model}.safetensors", judge, noise, nfe)
        )
        write_text(kept, json.dumps(judge.figures(of)))
    return json.loads(kept.read_text())


def _is_there(folder: Path, model: str) -> bool:
    """Whether the part of objectives.sh that trains it was run."""
    return (folder / f"{model.partition('@')[0]}.safetensors").exists()


def main(out: Path) -> None:
    folders = sorted(out.glob("seed-*"))
    runs = [(folder, Judge(folder / "rae.safetensors", DIGITS)) for folder in folders]
    models = {model: name for model, name in MODELS.items() if all(_is_there(folder, model) for folder in folders)}
    if missing := sorted(MODELS.keys() - models.keys()):
        print(f"not trained on every seed, and left out: {', '.join(missing)}", file=sys.stderr)
    figures = {model: [measure(folder, judge, model) for folder, judge in runs] for model in models}
    steps = {name: out / f"steps-{model.partition('@')[0]}" for model, name in models.items()}
    columns = {"steps": {name: path.read_text().strip() if path.exists() else "" for name, path in steps.items()}}
    for nfe in MORE_STEPS:
        columns[f"pixels, {nfe} evaluations"] = {
            name: spread([measure(folder, judge, model, nfe)[_PIXELS] for folder, judge in runs], "{:.4f}")
            for model, name in models.items()
            if model not in ("teacher", _ONE_STEP)
        }
    heading = f"{len(folders)} seeds, {IMAGES:,} images each"
    lines = table(heading, {name: figures[model] for model, name in models.items()}, columns)
    (out / "table.md").write_text(lines)
    _picture(out / "objectives.png", figures)
    print(lines, end="")


def _picture(path: Path, figures: dict[str, list[Figures]]) -> None:
    """Both distances of every model, in the order of the pixels'; a teacher's single step would set the scale."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    figure.suptitle("Fréchet distance to the training digits")
    FigureCanvasAgg(figure)
    order = sorted(figures.keys() - {_ONE_STEP}, key=lambda model: -mean(found[_PIXELS] for found in figures[model]))
    for axes, key in zip(figure.subplots(1, 2, sharey=True), list(COLUMNS)[:2], strict=True):
        values = [[found[key] for found in figures[model]] for model in order]
        spread = [stdev(some) if len(some) > 1 else 0 for some in values]
        colours = ["#888888" if model in ("teacher", "cmt") else "#1f77b4" for model in order]
        axes.barh([MODELS[model] for model in order], [mean(some) for some in values], xerr=spread, color=colours)
        axes.set(title=COLUMNS[key][0], xlim=(0, None), ylim=(-0.7, len(order) - 0.3))
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def steps_in(seconds: float, probe: str) -> int:
    rate = json.loads(Path(f"{probe}.log.jsonl").read_text().splitlines()[-1])["samples_per_second"]
    return max(20, int(seconds * rate / json.loads(Path(f"{probe}.json").read_text())["settings"]["batch_size"]))


if __name__ == "__main__":
    if sys.argv[1] == "--steps":
        print(steps_in(float(sys.argv[2]), sys.argv[3]))
    else:
        main(Path(sys.argv[1]))
