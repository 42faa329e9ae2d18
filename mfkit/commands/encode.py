"""``mfkit encode``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mfkit.commands import options
from mfkit.config.settings import AutoencoderSettings, EncodeSettings


def register(app: typer.Typer) -> None:
    @options.command(
        app, "encode", EncodeSettings,
        examples="`mfkit encode digits:train --rae rae.safetensors -o latents/`, "
        "`mfkit encode 'train-{000..099}.tar' --rae rae.safetensors -o latents/ --mirror --workers 16`, "
        "`mfkit encode train/ --vae stabilityai/sd-vae-ft-mse --preset imagenet256 -o latents/`, "
        "`mfkit encode digits:train --rae rae.safetensors -o - | "
        "mfkit train-teacher - -o teacher.safetensors --steps 20`",
    )  # fmt: skip
    def encode(
        images: Annotated[str, typer.Argument(metavar="IMAGES", help="Folder, shards, or `digits`.")],
        output: options.OutputFolderOrStream,
        flags: dict[str, Any],
        rae: Annotated[Path | None, typer.Option(help="RAE whose encoder is used.", metavar="FILE")] = None,
        vae: Annotated[
            str | None,
            typer.Option(
                help="Or a diffusers AutoencoderKL: its folder, or its repository on the hub, owner/repo or "
                "hf://owner/repo/folder.",
                metavar="NAME|DIR",
            ),
        ] = None,
        image_size: Annotated[
            int | None,
            typer.Option(help="Side of the images for a VAE; by default the preset's.", min=8, metavar="PX"),
        ] = None,
        preset: options.Preset = None,
        mirror: Annotated[bool, typer.Option("--mirror", help="Encode the mirror image of each image too.")] = False,
        workers: options.Workers = 4,
        overwrite: options.Overwrite = False,
        on_bad: options.BadInput = "error",
    ) -> str | None:
        """Images → shards of standardised latents, read ever after instead of the images."""
        from mfkit.artifacts.artifact import open_artifact
        from mfkit.commands.common import inherited_preset
        from mfkit.config import presets
        from mfkit.errors import UsageError
        from mfkit.inference.encode import encode, open_vae

        if (rae is None) == (vae is None):
            raise UsageError("give --rae or --vae")
        if rae and image_size:
            raise UsageError("--image-size is for a VAE; an RAE knows the size of its images")
        autoencoder = open_artifact(rae, kinds=("rae",)) if rae else open_vae(str(vae))
        preset = inherited_preset(preset, autoencoder)
        settings = presets.resolve(EncodeSettings, "encode", preset, flags)
        size = image_size or presets.resolve(AutoencoderSettings, "train-rae", preset, {}).image_size
        return encode(
            images,
            autoencoder,
            size,
            output,
            preset,
            settings,
            mirror=mirror,
            workers=workers,
            overwrite=overwrite,
            on_bad=on_bad,
        )
