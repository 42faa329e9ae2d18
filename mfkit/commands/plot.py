"""``mfkit plot``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command


@command(
    "Inspect",
    examples="""
    mfkit plot cmt.log.jsonl mfd.log.jsonl -o curves.png
    """,
)  # fmt: skip
def plot(
    logs: Annotated[list[Path], typer.Argument(metavar="LOG…", help="Training logs.")],
    output: options.RequiredOutput,
    overwrite: options.Overwrite = False,
) -> str:
    """Plot training logs.

    Draws all that the logs tell of losses and distances as a PNG file.
    """
    from mfkit.artifacts.atomic import exclusive_output
    from mfkit.errors import InputError
    from mfkit.training.curves import write_curves
    from mfkit.training.log import read

    names = [log.name.removesuffix(".log.jsonl") for log in logs]
    if len(set(names)) < len(names):
        names = [str(log) for log in logs]
    curves = {name: read(log) for name, log in zip(names, logs, strict=True)}
    if empty := [log for log, name in zip(logs, names, strict=True) if not curves[name]]:
        raise InputError(f"{empty[0]} holds no line yet")
    with exclusive_output(output, overwrite=overwrite, suffix=".png"):
        write_curves(output, curves)
    return str(output)
