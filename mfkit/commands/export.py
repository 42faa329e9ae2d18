"""``mfkit export``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options


@options.command(
    "Weights",
    examples="""
    mfkit export mft.safetensors -o pipeline/
    mfkit export mft.safetensors --variants fp16 -o pipeline/
    mfkit export mft.safetensors --rae rae.safetensors --fid fid.json -o pipeline/
    """,
)  # fmt: skip
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Student's file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.", metavar="DIR")],
    rae: options.Rae = None,
    fid: Annotated[
        Path | None,
        typer.Option(help="What `mfkit fid` printed for its images, for the model card.", metavar="FILE"),
    ] = None,
    variants: Annotated[
        str,
        typer.Option(help="Weights beside those in float32, by commas: fp16, bf16.", metavar="A,B"),
    ] = "",
    overwrite: options.Overwrite = False,
) -> str:
    """Export a student as a diffusers pipeline.

    Writes student, decoder, their code and a model card to a folder, which `DiffusionPipeline.from_pretrained(DIR,
    trust_remote_code=True)` loads where mfkit is not installed.
    """
    from mfkit.interop.export import export

    return export(model, rae, output, fid, [name for name in variants.split(",") if name], overwrite=overwrite)
