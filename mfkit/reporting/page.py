"""The page of a run, or of several beside each other: one HTML file that needs nothing else and runs nothing."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from math import prod
from pathlib import Path

import torch
from jinja2 import Environment, PackageLoader

from mfkit.artifacts.artifact import Artifact
from mfkit.artifacts.atomic import exclusive_output, write_text
from mfkit.autoencoders.rae import RAEFile, rae_outline
from mfkit.data.grid import grid_png
from mfkit.errors import MfkitError
from mfkit.evaluation.flops import decoder_flops, generator_flops
from mfkit.models.files import open_generator
from mfkit.reporting import chain
from mfkit.reporting.figures import HEADS, rows_of_figures
from mfkit.reporting.pictures import COLUMNS, Row, rows
from mfkit.reporting.run import Run, Step
from mfkit.training.curves import curves_png


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
    folders: Sequence[Path],
    output: Path,
    *,
    targets: Mapping[str, float],
    images: str | None,
    drawn: bool,
    overwrite: bool,
) -> str:
    """Writes the page. What a file says becomes text in it, whatever it says.

    :param targets: see :func:`rows_of_figures`. :param images: the real ones, where the runs do not name them.
    :param drawn: whether the networks draw for it.
    :returns: the line for standard output.
    :raises InputError: a folder holds nothing that mfkit wrote. :raises UsageError: a target is of no file there.
    """
    with exclusive_output(output, overwrite=overwrite, suffix=".html"):
        runs = [Run.open(folder) for folder in folders]
        page = Environment(loader=PackageLoader("mfkit.reporting", ""), autoescape=True).get_template("page.html")
        text = page.render(
            title=runs[0].folder.resolve().name if len(runs) == 1 else f"{len(runs)} runs",
            version=version("mfkit"), heads=HEADS, figures=rows_of_figures(runs, targets),
            runs=[_section(run, images, drawn) for run in runs],
            box_width=chain.WIDTH, box_height=chain.HEIGHT,
        )  # fmt: skip
        write_text(output, text)
    return str(output)


def _section(run: Run, images: str | None, drawn: bool) -> _Section:
    notes = [f"Not read: {reason}" for reason in run.unread]
    grid = None
    if drawn:
        found = list(rows(run, images))
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
