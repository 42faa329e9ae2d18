"""``mfkit import``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.config.presets import PresetName


@command(
    "Weights",
    examples="""
    mfkit import stage2_model.pt -o teacher.safetensors --preset imagenet256
    mfkit import model.pt --stats stat.pt -o rae.safetensors \\
        --encoder vit_base_patch14_reg4_dinov2.lvd142m
    mfkit import hf://owner/repo/model.pt -o student.safetensors
    """,
)  # fmt: skip
def import_weights(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Weights of a DiT-DH or an RAE decoder (.pt, .safetensors), an AutoencoderRAE folder, or "
            "hf://owner/repo/path.",
        ),
    ],
    output: options.RequiredOutput,
    weights: Annotated[
        Literal["ema", "model"] | None,
        typer.Option(help="Which of a checkpoint's weights.  [default: the EMA where there is one]"),
    ] = None,
    stats: Annotated[
        str | None, typer.Option(help="For a decoder: its latents' mean and var (.pt).", metavar="FILE")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="For a decoder: its timm encoder, or an RAE's file.", metavar="E")
    ] = None,
    encoder_weights: options.EncoderWeights = None,
    decoder_heads: Annotated[
        int | None,
        typer.Option(help="For a decoder of no published width: its attention heads.", min=1, metavar="N"),
    ] = None,
    rae: Annotated[
        Path | None, typer.Option(help="For a generator: the RAE to record as its own.", metavar="FILE")
    ] = None,
    time_shift: Annotated[
        float | None,
        typer.Option(help="For a generator: its time shift.  [default: sqrt(C H W / 4096)]", min=1, metavar="S"),
    ] = None,
    preset: Annotated[PresetName | None, typer.Option(help="Preset that it passes on.")] = None,
    overwrite: options.Overwrite = False,
) -> str:
    """Import released weights.

    Writes a file that mfkit's commands take. Nothing in the weights is run.
    """
    from mfkit.interop.import_weights import ImportRequest, import_weights

    request = ImportRequest(
        weights=weights, preset=preset, rae=rae, time_shift=time_shift, stats=stats, encoder=encoder,
        encoder_weights=encoder_weights, decoder_heads=decoder_heads,
    )  # fmt: skip
    return import_weights(source, output, request, overwrite=overwrite)
