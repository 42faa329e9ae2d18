"""``mfkit train-rae``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.config.settings import AutoencoderSettings, TrainingSettings


@command(
    "Prepare", AutoencoderSettings, TrainingSettings,
    examples="""
    mfkit train-rae digits:train --encoder tiny -o rae.safetensors
    mfkit train-rae my-photos/ --encoder tiny -o rae.safetensors
    mfkit train-rae train/ --encoder vit_base_patch14_reg4_dinov2.lvd142m \\
        --preset imagenet256 -o rae.safetensors
    """,
)  # fmt: skip
def train_rae(
    images: options.Images,
    encoder: Annotated[
        str,
        typer.Option(
            help="A timm model; a file (an RAE's, or timm's with its config.json); or tiny, pre-trained here.",
            metavar="E",
        ),
    ],
    output: options.RequiredOutput,
    run: options.Run,
    flags: options.Flags,
    encoder_weights: options.EncoderWeights = None,
    layers: Annotated[
        str,
        typer.Option(
            help="Layers of the encoder, counted from 0, whose mean the latents are (RAEv2, arXiv 2605.18324), such as "
            "11,13,15.  [default: the last]",
            metavar="N,N",
        ),
    ] = "",
    keep_latents: Annotated[
        bool,
        typer.Option(
            "--keep-latents",
            help="Of an RAE as --encoder, keep the latents' statistics: latents and generators fit the new decoder.",
        ),
    ] = False,
) -> str:
    """Train a decoder for a vision encoder.

    Writes encoder, decoder and latent statistics to one file. The encoder is frozen; the decoder learns to invert
    it, from latents with some noise added, by L1, a perceptual distance and what a discriminator says.
    """
    from dataclasses import replace
    from functools import partial

    from mfkit.autoencoders.encoders import TINY, fetched, is_rae
    from mfkit.autoencoders.rae import RAEFile
    from mfkit.config.presets import resolve
    from mfkit.data.images import DIGITS, native_size, open_images
    from mfkit.training.autoencoder import train_rae

    numbers = options.layer_numbers(layers)
    encoder = fetched(encoder)
    own: options.PresetName = "small" if encoder == TINY else "imagenet256"
    made = RAEFile.open(Path(encoder)) if is_rae(encoder) else None
    if made and keep_latents:  # another size has other latents
        config = made.network_config
        flags = {"image_size": config.image_size, "patch": config.image_size // config.side} | dict(flags)
    recorded = "digits" if images.partition(":")[0] == DIGITS else made.preset if made else None
    preset = run.preset or recorded or own
    settings = resolve(TrainingSettings, "train-rae", preset, flags)
    sizes = resolve(AutoencoderSettings, "train-rae", preset, flags)
    if not sizes.image_size:
        sizes = replace(sizes, image_size=native_size(images, sizes.patch, run.reading))
    return train_rae(
        partial(open_images, images, reading=run.reading), encoder, encoder_weights, preset, settings, sizes,
        run.options(output), layers=numbers, keep_latents=keep_latents,
    )  # fmt: skip
