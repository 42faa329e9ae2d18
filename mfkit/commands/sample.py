"""``mfkit sample``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mfkit.commands import options
from mfkit.config.settings import PrecisionName


def register(app: typer.Typer) -> None:
    @options.command(
        app, "sample",
        examples="`mfkit sample mft.safetensors -n 2000 -o samples/ --grid grid.png`, "
        "`mfkit sample teacher.safetensors -n 50000 --nfe 50 -o samples.npz`",
    )  # fmt: skip
    def sample(
        model: Annotated[Path, typer.Argument(metavar="MODEL", help="Student or teacher.")],
        count: Annotated[int, typer.Option("-n", "--count", help="Pictures to draw.", min=1, metavar="N")],
        output: Annotated[
            str | None,
            typer.Option("-o", "--output", help="Folder, FILE.npz, or - for a tar stream.", metavar="DIR|FILE|-"),
        ] = None,
        grid: Annotated[
            Path | None, typer.Option(help="Draw the first pictures as one, ten per row.", metavar="FILE")
        ] = None,
        nfe: Annotated[
            int | None,
            typer.Option(
                help="Network evaluations per picture; by default 1 for a student, 50 for a teacher.",
                min=1,
                metavar="N",
            ),
        ] = None,
        solver: Annotated[
            Literal["euler", "heun"] | None, typer.Option(help="Solver of a teacher's ODE; by default euler.")
        ] = None,
        time_shift: Annotated[
            float | None,
            typer.Option(help="Shift of the time grid; by default the teacher's own, 1 for a student.", min=1),
        ] = None,
        labels: Annotated[
            str, typer.Option(help="`equal`: the classes in turn; `random`; or class indices.", metavar="LABELS")
        ] = "equal",
        seed: Annotated[int, typer.Option(help="Picture i depends on the seed and i alone.", min=0, metavar="N")] = 0,
        format: Annotated[
            Literal["png", "tar"], typer.Option(help="A folder of PNG files by class, or of tar shards.")
        ] = "png",
        batch_size: Annotated[
            int,
            typer.Option(
                help="Rows per forward pass and process; on a CPU in whole passes of a fixed size.",
                min=1,
                metavar="ROWS",
            ),
        ] = 100,
        precision: Annotated[PrecisionName, typer.Option(help="Precision of matrix products.")] = "float32",
        rae: options.Rae = None,
        overwrite: options.Overwrite = False,
    ) -> str | None:
        """Student or teacher → pictures."""
        from mfkit.errors import UsageError
        from mfkit.inference.sample import Sampler, SampleRequest, sample

        if output is None and grid is None:
            raise UsageError("nothing to write: give -o, --grid, or both")
        request = SampleRequest(
            count=count, nfe=nfe, solver=solver, time_shift=time_shift, labels=labels, seed=seed,
            batch_size=batch_size, precision=precision,
        )  # fmt: skip
        return sample(Sampler(model, rae, request), output, tar=format == "tar", grid=grid, overwrite=overwrite)
