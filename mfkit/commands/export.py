"""``mfkit export``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options


@options.command(
    "Weights",
    examples="""
    mfkit export mft.safetensors -o pipeline/
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
    overwrite: options.Overwrite = False,
) -> str:
    """Export a student as a diffusers pipeline.

    Writes student, decoder and a model card to a folder.
    `MeanFlowPipeline.from_pretrained(DIR)(class_labels=[207], num_inference_steps=1).images` samples from it.
    """
    from mfkit.interop.export import export

    return export(model, rae, output, fid, overwrite=overwrite)
