"""``mfkit decode``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.config.settings import DecodeSettings


@command(
    "Sample and evaluate", DecodeSettings,
    examples="""
    mfkit decode latents/ -o reconstructed/
    mfkit decode latents/ --grid pairs.png --compare 30
    mfkit decode traj/ --rae sharper.safetensors -o ends.npz
    mfkit encode photos/ --rae rae.safetensors -o - | mfkit decode - -o recon/
    """,
)  # fmt: skip
def decode(
    latents: Annotated[str, typer.Argument(metavar="SHARDS", help="Latents; of trajectories, the ends are decoded.")],
    flags: options.Flags,
    output: options.ImagesOutput = None,
    grid: Annotated[
        Path | None, typer.Option(help="Draw a hundred, spread evenly, as a grid, ten per row.", metavar="FILE")
    ] = None,
    compare: Annotated[
        int | None,
        typer.Option(help="Draw N into --grid, each row under the images it was encoded from.", min=1, metavar="N"),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Those images.  [default: the recorded ones]", metavar="IMAGES")
    ] = None,
    format: options.ImageFormat = "png",
    rae: options.Rae = None,
    classes: options.Classes = None,
    workers: options.Workers = 4,
    overwrite: options.Overwrite = False,
) -> str | None:
    """Decode latents into images.

    The inverse of encode: what a generator learns from is what these images show.
    """
    from mfkit.autoencoders.files import autoencoder_of
    from mfkit.config.presets import resolve
    from mfkit.data.latents import open_decodable
    from mfkit.errors import UsageError
    from mfkit.inference.decode import Decoding
    from mfkit.inference.images import write_images

    if compare and not grid:
        raise UsageError("--compare draws into --grid FILE")
    if images and not compare:
        raise UsageError("--images are what --compare N shows beside them")
    data = open_decodable(latents, classes=classes)
    job = Decoding(
        data, autoencoder_of(data.artifact, rae), resolve(DecodeSettings, "decode", None, flags),
        workers=workers, compare=compare, images=images,
    )  # fmt: skip
    return write_images(job, output, tar=format == "tar", grid=grid, overwrite=overwrite)
