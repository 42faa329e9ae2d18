"""``mfkit plot``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options


def register(app: typer.Typer) -> None:
    @options.command(app, "plot", examples="`mfkit plot cmt.log.jsonl mfd.log.jsonl -o curves.png`")
    def plot(
        logs: Annotated[list[Path], typer.Argument(metavar="LOG…", help="Training logs.")],
        output: options.RequiredOutput,
        overwrite: options.Overwrite = False,
    ) -> str:
        """Training logs → loss, raw error and gradient norm, as a picture."""
        from mfkit.artifacts.atomic import claimed
        from mfkit.data.figures import write_curves
        from mfkit.errors import using
        from mfkit.training.log import read

        names = [log.name.removesuffix(".log.jsonl") for log in logs]
        if len(set(names)) < len(names):
            names = [str(log) for log in logs]
        curves = {name: read(log) for name, log in zip(names, logs, strict=True)}
        with claimed(output, overwrite=overwrite), using(", ".join(map(str, logs))):
            write_curves(output, curves)
        return str(output)
