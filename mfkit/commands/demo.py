"""``mfkit demo``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command


@command(
    "Inspect",
    examples="""
    mfkit demo drift.safetensors --teacher teacher.safetensors
    mfkit demo hf://owner/repo --port 8000
    """,
)  # fmt: skip
def demo(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Student's or teacher's file.")],
    teacher: Annotated[
        Path | None, typer.Option(help="Teacher to draw beside it, from the same noise.", metavar="FILE")
    ] = None,
    rae: options.Rae = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(help="Port.  [default: the first free one from 7860 on]", metavar="N", min=1, max=65535),
    ] = None,
) -> None:
    """Draw on a page in the browser.

    Choose classes, seed and steps; each picture with the time that it took. Go from one noise to another. See the
    teacher's picture beside the student's. Ctrl-C ends it. Image i of a seed is that of `mfkit sample --seed`.
    """
    from mfkit.errors import InputError
    from mfkit.inference.painter import Painter
    from mfkit.reporting.demo import show

    painter = Painter.open(model, rae)
    beside = Painter.open(teacher, rae) if teacher else None
    if beside and beside.file.kind != "teacher":
        raise InputError(f"--teacher {teacher} is a {beside.file.kind}")
    for said in ("latent_shape", "num_classes"):
        if beside and getattr(beside.file, said) != getattr(painter.file, said):
            raise InputError(f"--teacher {teacher} is for other latents or classes than {model}")
    show(painter, beside, host=host, port=port, ready=lambda address: print(address, flush=True))
