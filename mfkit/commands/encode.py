"""``mfkit encode``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.config.settings import EncodeSettings


@command(
    "Prepare", EncodeSettings,
    examples="""
    mfkit encode digits:train --rae rae.safetensors -o latents/
    mfkit encode 'train-{000..099}.tar' --rae rae.safetensors -o latents/ --mirror
    mfkit encode train/ --vae stabilityai/sd-vae-ft-mse --preset imagenet256 -o l/
    mfkit encode digits --rae rae.safetensors -o - |
        mfkit train-teacher - -o teacher.safetensors
    """,
)  # fmt: skip
def encode(
    images: options.Images,
    output: options.OutputFolderOrStream,
    flags: options.Flags,
    rae: Annotated[Path | None, typer.Option(help="File or folder of the autoencoder.", metavar="FILE|DIR")] = None,
    vae: Annotated[
        str | None,
        typer.Option(
            help="Or a diffusers AutoencoderKL on the hub: owner/repo, or hf://owner/repo/folder.",
            metavar="NAME|DIR",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the images for a VAE.  [default: the preset's]", min=8, metavar="PX"),
    ] = None,
    layers: Annotated[
        str,
        typer.Option(
            help="Layers that the latents must be of, as `train-rae --layers` chose them; another RAE is refused.",
            metavar="N,N",
        ),
    ] = "",
    preset: options.Preset = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Encode the mirror image of each image too.")] = False,
    workers: options.Workers = 4,
    overwrite: options.Overwrite = False,
    on_error: options.OnErrorOption = "raise",
    cache: options.Cache = None,
) -> str | None:
    """Encode images into latents, once.

    Training reads the latents ever after instead of the images.
    """
    from mfkit.autoencoders.files import open_autoencoder
    from mfkit.autoencoders.vae import VAEFile
    from mfkit.config.presets import resolve
    from mfkit.config.settings import AutoencoderSettings, Reading
    from mfkit.errors import UsageError
    from mfkit.inference.encode import Encoding
    from mfkit.inference.output import write_shards_or_stream

    if (rae is None) == (vae is None):
        raise UsageError("pass --rae or --vae")
    autoencoder = open_autoencoder(rae) if rae else VAEFile.open_source(str(vae))
    if image_size and autoencoder.image_size:
        raise UsageError(f"--image-size is for a VAE; {autoencoder.path} takes images of {autoencoder.image_size}")
    if layers and autoencoder.layers is None:
        raise UsageError(f"--layers is for an RAE; {autoencoder.path} is a {autoencoder.kind}")
    if layers and options.layer_numbers(layers) != list(autoencoder.layers or ()):
        own = f"layers {','.join(map(str, autoencoder.layers or ()))}" if autoencoder.layers else "its last layer alone"
        raise UsageError(
            f"--layers {layers}: latents of {autoencoder.path} are of {own}; train-rae makes an RAE of others"
        )
    preset = options.preset_or(preset, autoencoder.preset, autoencoder.path)
    size = autoencoder.image_size or image_size or resolve(AutoencoderSettings, "train-rae", preset).image_size
    job = Encoding(
        images, autoencoder, size, preset, resolve(EncodeSettings, "encode", preset, flags),
        mirror=mirror, workers=workers, reading=Reading(on_error, cache),
    )  # fmt: skip
    return write_shards_or_stream(job, output, overwrite=overwrite)
