"""The page of a run, or of several beside each other: one HTML file that needs nothing else and runs nothing."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader

from mfkit.artifacts.artifact import Artifact
from mfkit.artifacts.atomic import exclusive_output, write_text
from mfkit.autoencoders.rae import RAEFile, rae_outline
from mfkit.data.grid import grid_png
from mfkit.errors import MfkitError, UsageError
from mfkit.evaluation.flops import decoder_flops, generator_flops
from mfkit.models.files import open_generator
from mfkit.reporting import chain
from mfkit.reporting.pictures import COLUMNS, Row, rows
from mfkit.reporting.run import Run, Step
from mfkit.training.curves import curves_png

_TOLD = {"frechet_distance", "features", "features_digest", "resize", "samples", "reference", "spaces", "untrained"}
"""What has a column of its own in the table of figures, or is told with it."""
_PROTOCOL = ("labels", "seed", "solver", "time_shift", "guidance", "precision", "images_per_class")
"""What moves a figure besides, as the samples say it."""


@dataclass(frozen=True)
class _Picture:
    png: str
    alt: str
    caption: str = ""
    rows: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Network:
    name: str
    numbers: str
    bytes: str
    flops: str


@dataclass(frozen=True)
class _Made:
    """A step, as text."""

    name: str
    kind: str
    command: str
    digest: str
    settings: str
    time: str


@dataclass(frozen=True)
class _Figures:
    """A row of the table."""

    cells: list[str]
    besides: list[str]


@dataclass(frozen=True)
class _Section:
    """A run, as the page has it."""

    title: str
    notes: list[str]
    grid: _Picture | None
    pictures: list[_Picture]
    chain: chain.Drawing
    steps: list[_Made]
    networks: list[_Network]


def write_report(
    folders: Sequence[Path], output: Path, *, targets: Mapping[str, float], drawn: bool, overwrite: bool
) -> str:
    """Writes the page. What a file says becomes text in it, whatever it says.

    :param targets: Fréchet distances aimed at, by file of figures. :param drawn: whether the networks draw for it.
    :returns: the line for standard output.
    :raises InputError: a folder holds nothing that mfkit wrote. :raises UsageError: a target is of no file there.
    """
    with exclusive_output(output, overwrite=overwrite, suffix=".html"):
        runs = [Run.open(folder) for folder in folders]
        if strange := [name for name in targets if not any(name in run.figures for run in runs)]:
            raise UsageError(f"--target {strange[0]}: no run has figures of that name")
        page = Environment(loader=PackageLoader("mfkit.reporting", ""), autoescape=True).get_template("page.html")
        text = page.render(
            title=runs[0].folder.resolve().name if len(runs) == 1 else f"{len(runs)} runs",
            version=version("mfkit"), figures=_figures(runs, targets), runs=[_section(run, drawn) for run in runs],
            box_width=chain.WIDTH, box_height=chain.HEIGHT,
        )  # fmt: skip
        write_text(output, text)
    return str(output)


def _section(run: Run, drawn: bool) -> _Section:
    notes = [f"Not read: {reason}" for reason in run.unread]
    grid = None
    if drawn:
        found = list(rows(run))
        notes += [one for one in found if isinstance(one, str)]
        grid = _grid([one for one in found if isinstance(one, Row)])
    pictures = []
    if run.logs:
        names = ", ".join(run.logs)
        pictures.append(_Picture(_encoded(curves_png(run.logs)), f"Curves of the trainings {names}", "Training"))
    steps = run.steps()
    networks = list(_networks(run))
    title = run.folder.resolve().name
    return _Section(title, notes, grid, pictures, chain.draw(steps), [_made(step) for step in steps], networks)


def _grid(found: Sequence[Row]) -> _Picture | None:
    if not found:
        return None
    size = max(row.images.shape[-1] for row in found)
    images = [torch.nn.functional.interpolate(row.images, size=(size, size)) for row in found]
    titles = [row.title for row in found]
    alt = f"{len(found)} rows of {COLUMNS} images: {'; '.join(titles)}"
    return _Picture(_encoded(grid_png(torch.cat(images).clamp(0, 1), COLUMNS)), alt, rows=titles)


def _encoded(png: bytes) -> str:
    return base64.b64encode(png).decode()


def _made(step: Step) -> _Made:
    settings = json.dumps(step.record.settings, indent=1) if step.record.settings else ""
    time = "" if step.seconds is None else f"{step.seconds // 60:.0f}:{step.seconds % 60:02.0f}"
    return _Made(step.name, step.kind, step.record.command, step.digest, settings, time)


def _networks(run: Run) -> Iterator[_Network]:
    for name, artifact in run.of_kind("rae", "teacher", "student").items():
        assert artifact.header is not None
        numbers = sum(prod(shape) for shape in artifact.header.shapes.values())
        size = artifact.path.stat().st_size
        yield _Network(name, f"{numbers / 1e6:.2f} million", f"{size / 1e6:.1f} MB", f"{_flops(artifact):.3g}")


def _flops(artifact: Artifact) -> float:
    """10^9 of an evaluation; of an RAE, of its decoder. NaN where a file describes no network."""
    try:
        if artifact.kind == "rae":
            return decoder_flops(rae_outline(RAEFile.open(artifact.path).network_config))["flops"]
        file = open_generator(artifact.path)
        return generator_flops(file.architecture, file.kind, file.network_config)["flops"]
    except MfkitError:
        return float("nan")


def _figures(runs: Sequence[Run], targets: Mapping[str, float]) -> dict[str, Any] | None:
    """A table of what ``mfkit fid`` printed, of all runs; None where there is nothing."""
    found = [row for run in runs for row in _rows_of_figures(run, targets)]
    heads = ["run", "file", "images of", "evaluations", "images", "space", "real images", "Fréchet distance", "target"]
    return {"heads": [*heads, "besides"], "rows": found} if found else None


def _rows_of_figures(run: Run, targets: Mapping[str, float]) -> Iterator[_Figures]:
    names = {artifact.digest: name for name, artifact in run.files.items()}
    teachers = _distances_of_teachers(run)
    for file, document in run.figures.items():
        samples, reference, untrained = (
            _dictionary(document.get(name)) for name in ("samples", "reference", "untrained")
        )
        model = names.get(str(samples.get("model_digest")), str(samples.get("location")))
        drawn = [_shown(samples.get("nfe")), _shown(samples.get("images"))]
        first = [run.folder.resolve().name, file, model, *drawn]
        real = f"{reference.get('location')} ({reference.get('images')})"
        besides = list(_numbers({key: one for key, one in document.items() if key not in _TOLD}))
        besides += [
            f"{name.replace('_', ' ')} {_shown(samples[name])}" for name in _PROTOCOL if samples.get(name) is not None
        ]
        wanted = targets.get(file)
        for space, figures in _spaces(document).items():
            own = _dictionary(figures)
            marked = f"{space}, trained on: no evidence" if own.get("trained_on") else space
            resize = [f"resize {own['resize']}"] if own.get("resize") else []
            distance = own.get("frechet_distance")
            teacher = None if run.kind_of(samples) == "teacher" else teachers.get(_conditions(document, space))
            target = _target(distance, wanted, teacher)
            yield _Figures([*first, marked, real, _shown(distance), target], resize + besides)
            besides, wanted = [], None
        if untrained:
            space = f"{untrained.get('features')}, not trained on"
            yield _Figures([*first, space, real, _shown(untrained.get("frechet_distance")), ""], [])


def _spaces(document: dict[str, Any]) -> dict[str, Any]:
    """What was measured in each feature space, by its name."""
    return _dictionary(document.get("spaces")) or {str(document.get("features")): document}


def _distances_of_teachers(run: Run) -> dict[tuple[str, ...], float]:
    """What a teacher of the run reached, by the conditions."""
    return {
        _conditions(document, space): figures["frechet_distance"]
        for document in run.figures.values()
        if run.kind_of(_dictionary(document.get("samples"))) == "teacher"
        for space, figures in _spaces(document).items()
        if isinstance(_dictionary(figures).get("frechet_distance"), float)
    }


def _conditions(document: dict[str, Any], space: str) -> tuple[str, ...]:
    """Two figures with the same can be compared."""
    samples, reference = (_dictionary(document.get(name)) for name in ("samples", "reference"))
    own = _dictionary(_spaces(document).get(space))
    real = [reference.get(name) for name in ("location", "images", "digest")]
    return tuple(map(str, (space, own.get("features_digest"), own.get("resize"), samples.get("images"), *real)))


def _target(distance: Any, wanted: float | None, teacher: float | None) -> str:
    """The one that was asked for, else the teacher's; and whether it is reached."""
    target = teacher if wanted is None else wanted
    if target is None or not isinstance(distance, float):
        return ""
    whose = "the teacher's " if wanted is None else ""
    return f"{whose}{_shown(target)}: {'reached' if distance <= target else 'not reached'}"


def _numbers(document: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in document.items():
        name = f"{before}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _numbers(value, f"{name}: ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{name} {_shown(value)}"


def _dictionary(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    """Also of the numbers of strangers, however large."""
    if value is None:
        return ""
    if isinstance(value, float) or (isinstance(value, int) and abs(value) >= 10**15):
        try:
            return f"{value:.4g}"
        except OverflowError:
            return "beyond all numbers"
    return str(value)
