"""The training log: one line of JSON per so many steps, in a file beside the output."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mfkit.artifacts.atomic import write_errors, write_text
from mfkit.errors import InputError


@dataclass(frozen=True)
class LogLine:
    """Means over the steps since the line before."""

    step: int
    loss: float
    """What is descended; weighted losses sit near 1 by construction."""
    mse: float
    """Mean squared error per element, unweighted."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    samples_per_second: float
    parts: dict[str, float] = field(default_factory=dict)
    """What the loss shows besides, by name."""

    def items(self) -> Iterable[tuple[str, Any]]:
        """All numbers by name, those of the loss under their own."""
        values = asdict(self)
        parts = values.pop("parts")
        return {**values, **parts}.items()


_ALWAYS = [item.name for item in fields(LogLine) if item.name != "parts"]


def append(path: Path, line: LogLine) -> None:
    with write_errors(path), path.open("a") as file:
        file.write(json.dumps(dict(line.items())) + "\n")


def truncate(path: Path, step: int) -> None:
    """Removes the lines past ``step``, which a resumed run writes again."""
    if path.exists():
        kept = [line for line in path.read_text(errors="replace").splitlines() if _step(line) <= step]
        write_text(path, "".join(line + "\n" for line in kept))


def _step(line: str) -> float:
    """The step of a line; infinite for one that was cut off as it was written."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.

    :raises InputError: it is none.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    lines = []
    for number, text in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            line = json.loads(text)
            lines.append({name: float(line[name]) for name in (*_ALWAYS, *line)})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not a line of a training log") from error
    return lines
