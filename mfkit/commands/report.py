"""``mfkit report``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command


@command(
    "Inspect",
    examples="""
    mfkit report runs/digits -o report.html
    mfkit report runs/seed-0 runs/seed-1 -o seeds.html
    """,
)  # fmt: skip
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders of runs.")],
    output: options.RequiredOutput,
    no_images: Annotated[bool, typer.Option("--no-images", help="Have no network draw for it.")] = False,
    overwrite: options.Overwrite = False,
) -> str:
    """Write a run down as a page.

    One HTML file that needs no network and runs nothing: what the networks draw, real images beside them, curves, the
    figures of the JSON files that `mfkit fid` printed, the chain of commands with settings, times and digests, cost.
    """
    from mfkit.reporting.page import write_report

    return write_report(runs, output, drawn=not no_images, overwrite=overwrite)
