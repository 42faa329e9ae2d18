"""``mfkit report``."""

from math import inf
from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.errors import UsageError


def _target(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        if name and 0 < float(value) < inf:
            return name, float(value)
    except ValueError:
        pass
    raise UsageError(f"--target {text}: give FILE=X, as fid.json=2.03")


@command(
    "Inspect",
    examples="""
    mfkit report runs/digits -o report.html
    mfkit report runs/seed-0 runs/seed-1 -o seeds.html
    mfkit report runs/in256 -o report.html --target fid.json=2.03
    """,
)  # fmt: skip
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders of runs.")],
    output: options.RequiredOutput,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE=X",
            help="Fréchet distance aimed at in a file of figures, in its first space, as fid.json=2.03; repeatable.  "
            "[default: the teacher's under the same conditions]",
        ),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Real images.  [default: the recorded ones]", metavar="IMAGES")
    ] = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Have no network draw for it.")] = False,
    overwrite: options.Overwrite = False,
) -> str:
    """Write a run down as a page.

    One HTML file that needs no network and runs nothing: what the networks draw, real images beside them, curves, the
    figures of the JSON files that `mfkit fid` printed, the chain of commands with settings and digests, what it cost.
    """
    from mfkit.reporting.page import write_report

    return write_report(
        runs, output, targets=dict(map(_target, target or [])), images=images, drawn=not no_images, overwrite=overwrite
    )
