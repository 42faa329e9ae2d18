"""``mfkit train-rae``."""

from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.config.settings import AutoencoderSettings, TrainingSettings


@options.command(
    "Prepare", AutoencoderSettings, TrainingSettings,
    examples="""
    mfkit train-rae digits:train --encoder tiny -o rae.safetensors
    mfkit train-rae my-photos/ --encoder tiny -o rae.safetensors
    mfkit train-rae train/ --encoder vit_base_patch14_reg4_dinov2.lvd142m \\
        --preset imagenet256 -o rae.safetensors
    """,
)  # fmt: skip
def train_rae(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="Folder, shards, or `digits`.")],
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
) -> str:
    """Train a decoder for a vision encoder.

    Writes encoder, decoder and latent statistics to one file. The encoder is frozen; the decoder learns to invert
    it, from latents with some noise added, by L1 and the distance of the encoder's own features. (The published
    decoders add LPIPS and a GAN: use those for ImageNet figures.)
    """
    from dataclasses import replace

    from mfkit.autoencoders.encoders import TINY
    from mfkit.config.presets import resolve
    from mfkit.data.images import DIGITS, native_size, open_images
    from mfkit.training.autoencoder import train_rae

    own: options.PresetName = "small" if encoder == TINY else "imagenet256"
    preset = run.preset or ("digits" if images.partition(":")[0] == DIGITS else own)
    settings = resolve(TrainingSettings, "train-rae", preset, flags)
    sizes = resolve(AutoencoderSettings, "train-rae", preset, flags)
    if not sizes.image_size:
        sizes = replace(sizes, image_size=native_size(images, sizes.patch, run.on_error))
    source = open_images(images, sizes.image_size, run.on_error)
    return train_rae(source, encoder, encoder_weights, preset, settings, sizes, run.options(output))
