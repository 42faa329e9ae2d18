"""``mfkit new``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command


@command(
    "Prepare",
    examples="""
    mfkit new pets/ my-photos/
    pets/run.sh
    """,
)  # fmt: skip
def new(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write.")],
    images: options.Images,
    preset: Annotated[
        options.PresetName | None,
        typer.Option(help="Hyperparameters to start from.  [default: digits for digits, else small]"),
    ] = None,
) -> str:
    """Begin a project for images of your own.

    Writes the chain as a script, its options as a file, and a README that says how long each step takes on this
    machine, by a minute of measuring. The first command after it is FOLDER/run.sh.
    """
    from mfkit.benchmark.project import new_project
    from mfkit.data.images import DIGITS

    of_digits = images.partition(":")[0] == DIGITS
    return new_project(folder, images, preset or ("digits" if of_digits else "small"))
