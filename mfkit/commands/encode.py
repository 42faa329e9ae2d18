"""``mfkit encode``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mfkit.commands import options
from mfkit.settings import EncodeSettings


def register(app: typer.Typer) -> None:
    @options.command(
        app, "encode", EncodeSettings,
        examples="`mfkit encode digits:train --rae rae.safetensors -o latents/`, "
        "`mfkit encode 'train-{000..099}.tar' --rae rae.safetensors -o latents/ --mirror --workers 8`, "
        "`mfkit encode digits:train --rae rae.safetensors -o - | "
        "mfkit train-teacher - -o teacher.safetensors --steps 20`",
    )  # fmt: skip
    def encode(
        images: Annotated[str, typer.Argument(metavar="IMAGES", help="Folder, shards, or `digits`.")],
        rae: Annotated[Path, typer.Option(help="RAE whose encoder is used.", metavar="FILE")],
        output: options.OutputFolderOrStream,
        flags: dict[str, Any],
        preset: options.Preset = None,
        mirror: Annotated[bool, typer.Option("--mirror", help="Encode the mirror image of each image too.")] = False,
        workers: options.Workers = 0,
        overwrite: options.Overwrite = False,
    ) -> str | None:
        """Images → shards of standardised latents, read ever after instead of the images."""
        from mfkit import presets
        from mfkit.commands.common import inherited_preset
        from mfkit.files.artifact import open_artifact
        from mfkit.stages.encode import encode

        preset = inherited_preset(preset, open_artifact(rae, kinds=("rae",)))
        settings = presets.resolve(EncodeSettings, "encode", preset, flags)
        return encode(images, rae, output, preset, settings, mirror=mirror, workers=workers, overwrite=overwrite)
