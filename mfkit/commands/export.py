"""``mfkit export``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.errors import UsageError


@command(
    "Weights",
    examples="""
    mfkit export mft.safetensors -o pipeline/
    mfkit export mft.safetensors --fid fid.json --variants fp16 -o pipeline/
    mfkit export mft.safetensors -o pipeline/ --license mit --push me/digits
    mfkit export mft.safetensors --format onnx -o mft.onnx
    """,
)  # fmt: skip
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Student's file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder or file to write.", metavar="DIR|FILE")],
    format: Annotated[
        Literal["diffusers", "onnx"], typer.Option("--format", help="A folder for diffusers, or one ONNX graph.")
    ] = "diffusers",
    rae: options.Rae = None,
    fid: Annotated[
        Path | None,
        typer.Option(
            help="Of a diffusers folder: what `mfkit fid` printed for its images, for the model card.", metavar="FILE"
        ),
    ] = None,
    variants: Annotated[
        str, typer.Option(help="Of a diffusers folder: weights beside those in float32: fp16, bf16.", metavar="A,B")
    ] = "",
    license: Annotated[
        str | None,
        typer.Option(help="The licence that the card or the graph states, as the hub names it.", metavar="ID"),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(help="Of a diffusers folder: write it to this repository of the hub too.", metavar="OWNER/REPO"),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository a private one.")] = False,
    steps: Annotated[
        int | None,
        typer.Option(help="Of an ONNX graph: evaluations of the student.  [default: 1]", metavar="N", min=1),
    ] = None,
    weights: Annotated[
        Literal["float32", "float16", "int8"] | None,
        typer.Option(help="Of an ONNX graph: how it holds its weights.  [default: float32]"),
    ] = None,
    overwrite: options.Overwrite = False,
) -> str:
    """Export a student, to run without mfkit.

    As a folder with model card, which `DiffusionPipeline.from_pretrained(DIR, trust_remote_code=True)` of diffusers
    loads; or as an ONNX graph from noise and labels to images, which is written once onnxruntime has drawn with it what
    PyTorch draws.
    """
    of_folder: dict[str, object] = {"--fid": fid, "--variants": variants, "--push": push}
    given: dict[str, dict[str, object]] = {
        "diffusers": of_folder, "onnx": {"--steps": steps, "--weights": weights}
    }  # fmt: skip
    for other in given.keys() - {format}:
        for option, value in given[other].items():
            if value:
                raise UsageError(f"{option} is of --format {other}")
    if private and not push:
        raise UsageError("--private is of --push")
    from mfkit.interop.exported import Exported

    exported = Exported.open(model, rae)
    if format == "onnx":
        from mfkit.interop.onnx import export_onnx

        return export_onnx(
            exported, output, steps=steps or 1, weights=weights or "float32", license=license, overwrite=overwrite
        )
    from mfkit.interop.export import export_pipeline

    named = [name for name in variants.split(",") if name]
    done = export_pipeline(exported, output, fid=fid, variants=named, license=license, overwrite=overwrite, repo=push)
    if push:
        from mfkit.formats.hub import upload

        return upload(output, push, private=private)
    return done
