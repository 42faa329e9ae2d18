"""The table of figures: what ``mfkit fid`` printed, with the protocol and the target of each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from mfkit.artifacts.artifact import Artifact
from mfkit.errors import UsageError
from mfkit.reporting.run import Run

HEADS = [
    "run", "file", "images of", "Fréchet distance", "target", "evaluations", "images", "space", "real images",
    "besides",
]  # fmt: skip
_TOLD = {"frechet_distance", "features", "features_digest", "resize", "samples", "reference", "spaces", "untrained"}
"""What has a column of its own, or is told with it."""
_PROTOCOL = ("labels", "seed", "solver", "time_shift", "guidance", "precision", "images_per_class")
"""What moves a figure besides, as the samples say it."""


@dataclass(frozen=True)
class Row:
    """Texts of the table; the last column is a list."""

    cells: list[str]
    besides: list[str]


@dataclass(frozen=True)
class _Distance:
    """A distance in one space."""

    file: str
    model: Artifact | None
    """That drew the images, if it is of the run."""
    space: str
    figures: dict[str, Any]
    conditions: tuple[str, ...]
    """Two distances with the same can be compared."""
    is_evidence: bool = True
    """False in a space that the model was trained on."""

    @property
    def value(self) -> float:
        """NaN where a file of others holds no number."""
        found = self.figures.get("frechet_distance")
        if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < 1e300:
            return float("nan")
        return float(found)


def rows_of_figures(runs: Sequence[Run], targets: Mapping[str, float]) -> list[Row]:
    """Of all runs.

    :param targets: distances aimed at, by the name of a file, in its first space; else it is what the student's teacher
        has under the same conditions.
    :raises UsageError: a target is of no file.
    """
    if strange := [name for name in targets if not any(name in run.figures for run in runs)]:
        raise UsageError(f"--target {strange[0]}: no run has figures of that name")
    known = [distance for run in runs for file in run.figures for distance in _distances(run, file)]
    return [row for run in runs for file in run.figures for row in _rows(run, file, targets.get(file), known)]


def _rows(run: Run, file: str, wanted: float | None, known: Sequence[_Distance]) -> Iterator[Row]:
    document = run.figures[file]
    samples, reference = (_dictionary(document.get(name)) for name in ("samples", "reference"))
    real = f"{reference.get('location')} ({reference.get('images')})"
    besides = [*_numbers({key: one for key, one in document.items() if key not in _TOLD})]
    besides += [
        f"{name.replace('_', ' ')} {_shown(samples[name])}" for name in _PROTOCOL if samples.get(name) is not None
    ]
    for found in _distances(run, file):
        of = found.model.path.name if found.model else str(samples.get("location"))
        drawn = [_shown(samples.get("nfe")), _shown(samples.get("images"))]
        resize = [f"resize {found.figures['resize']}"] if found.figures.get("resize") else []
        figure = [_shown(found.figures.get("frechet_distance")), _target(found, wanted, known)]
        first = [run.folder.resolve().name, file, of]
        yield Row([*first, *figure, *drawn, found.space, real], resize + besides)
        besides, wanted = [], None


def _distances(run: Run, file: str) -> Iterator[_Distance]:
    document = run.figures[file]
    samples, reference = (_dictionary(document.get(name)) for name in ("samples", "reference"))
    model = next((one for one in run.files.values() if one.digest == samples.get("model_digest")), None)
    spaces = _dictionary(document.get("spaces")) or {str(document.get("features")): document}
    found = [(space, _dictionary(figures)) for space, figures in spaces.items()]
    trained = {space for space, figures in found if figures.get("trained_on")}
    labelled = [(f"{space}, trained on: no evidence" if space in trained else space, own) for space, own in found]
    if untrained := _dictionary(document.get("untrained")):
        labelled.append((f"{untrained.get('features')}, not trained on", untrained))
    for space, own in labelled:
        said = [own.get(name) for name in ("features", "features_digest", "resize")]
        said += [samples.get(name) for name in ("images", "labels", "images_per_class")]
        said += [reference.get("digest") or reference.get("location"), reference.get("images")]
        yield _Distance(file, model, space, own, tuple(map(str, said)), not own.get("trained_on"))


def _target(found: _Distance, wanted: float | None, known: Sequence[_Distance]) -> str:
    """The one that was asked for, else the least that the model's teacher has; and whether it is reached."""
    if not isfinite(found.value) or not found.is_evidence:
        return ""
    before = found.model.provenance.history if found.model else {}
    teachers = [
        one for one in known
        if one.model and one.model.kind == "teacher" and one.model.digest in before and isfinite(one.value)
        and one.conditions == found.conditions
    ]  # fmt: skip
    teacher = min((one.value for one in teachers), default=inf)
    if wanted is None and not teachers:
        return ""
    target, whose = (teacher, "the teacher's ") if wanted is None else (wanted, "")
    return f"{whose}{_shown(target)}: {'reached' if found.value <= target else 'not reached'}"


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
