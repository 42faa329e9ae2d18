"""The chain of commands as boxes and lines, for a drawing."""

from collections.abc import Sequence
from dataclasses import dataclass

from mfkit.reporting.run import Step

WIDTH, HEIGHT = 168, 44
_ACROSS, _DOWN = 20, 34


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    name: str
    command: str
    """The subcommand that made it; empty for what none did."""


@dataclass(frozen=True)
class Drawing:
    """In units of a pixel, from the top left."""

    width: float
    height: float
    boxes: list[Box]
    lines: list[tuple[float, float, float, float]]


def draw(steps: Sequence[Step]) -> Drawing:
    """What is made from others below them, those of a level side by side.

    :param steps: each after its inputs.
    """
    level: dict[str, int] = {}
    for step in steps:
        level[step.digest] = 1 + max((level[one] for one in step.inputs if one in level), default=-1)
    rows: list[list[Step]] = [[] for _ in range(1 + max(level.values(), default=-1))]
    for step in steps:
        rows[level[step.digest]].append(step)
    width = max((len(row) for row in rows), default=0) * (WIDTH + _ACROSS)
    boxes: dict[str, Box] = {}
    for number, row in enumerate(rows):
        begin = (width - len(row) * (WIDTH + _ACROSS) + _ACROSS) / 2
        for place, step in enumerate(row):
            words = step.record.command.split()
            command = words[1] if len(words) > 1 else ""
            boxes[step.digest] = Box(begin + place * (WIDTH + _ACROSS), number * (HEIGHT + _DOWN), step.name, command)
    lines = [
        (boxes[one].x + WIDTH / 2, boxes[one].y + HEIGHT, boxes[step.digest].x + WIDTH / 2, boxes[step.digest].y)
        for step in steps
        for one in dict.fromkeys(step.inputs)
        if one in boxes
    ]
    return Drawing(width, len(rows) * (HEIGHT + _DOWN) - _DOWN, list(boxes.values()), lines)
