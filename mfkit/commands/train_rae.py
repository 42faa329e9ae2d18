"""``mfkit train-rae``."""

from typing import Annotated, Any

import typer

from mfkit.commands import options
from mfkit.config.settings import AutoencoderSettings, TrainingSettings


def register(app: typer.Typer) -> None:
    @options.command(
        app, "train-rae", AutoencoderSettings, TrainingSettings,
        examples="`mfkit train-rae digits:train --encoder tiny -o rae.safetensors`, "
        "`mfkit train-rae train/ --encoder vit_base_patch14_reg4_dinov2.lvd142m -o rae.safetensors`",
    )  # fmt: skip
    def train_rae(
        images: Annotated[str, typer.Argument(metavar="IMAGES", help="Folder, shards, or `digits`.")],
        encoder: Annotated[
            str,
            typer.Option(
                help="A timm model, a file (an RAE's, or timm's with its config.json), or `tiny`, pre-trained here.",
                metavar="E",
            ),
        ],
        output: options.RequiredOutput,
        flags: dict[str, Any],
        encoder_weights: options.EncoderWeights = None,
        preset: options.Preset = None,
        overwrite: options.Overwrite = False,
        restart: options.Restart = False,
        on_bad: options.BadInput = "error",
        dry_run: options.DryRun = False,
        log_with: options.LogWith = None,
    ) -> str:
        """Images → encoder, decoder and latent statistics, in one file.

        The encoder is frozen; the decoder learns to invert it, from latents with some noise added, by L1 and
        the distance of the encoder's own features. (The published decoders add LPIPS and a GAN: use those for
        ImageNet figures.)
        """
        from mfkit.commands.common import execution
        from mfkit.config import presets
        from mfkit.data.images import open_images
        from mfkit.training.autoencoder import train_rae

        preset = preset or ("digits" if images.partition(":")[0] == "digits" else "imagenet256")
        settings = presets.resolve(TrainingSettings, "train-rae", preset, flags)
        sizes = presets.resolve(AutoencoderSettings, "train-rae", preset, flags)
        source = open_images(images, sizes.image_size, on_bad)
        run = execution(output, overwrite, restart, dry_run, log_with)
        return train_rae(source, encoder, encoder_weights, preset, settings, sizes, run)
