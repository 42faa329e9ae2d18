"""``mfkit sample``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.config.settings import SampleSettings
from mfkit.flow.guidance import Guidance


@command(
    "Sample and evaluate", SampleSettings, Guidance,
    examples="""
    mfkit sample mft.safetensors -n 2000 -o samples/ --grid grid.png
    mfkit sample teacher.safetensors -n 50000 --nfe 50 -o samples.npz
    """,
)  # fmt: skip
def sample(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Student's or teacher's file.")],
    count: Annotated[int, typer.Option("-n", "--count", help="Images to sample.", min=1, metavar="N")],
    flags: options.Flags,
    output: options.ImagesOutput = None,
    grid: Annotated[
        Path | None, typer.Option(help="Draw the first images as a grid, ten per row.", metavar="FILE")
    ] = None,
    format: options.ImageFormat = "png",
    rae: options.Rae = None,
    guide: options.Guide = None,
    times: Annotated[Path | None, typer.Option(help="Grid of times that mfkit times wrote.", metavar="FILE")] = None,
    noise: Annotated[
        str | None,
        typer.Option(help="Trajectories to take noise and labels from, such as of --from.", metavar="SHARDS"),
    ] = None,
    overwrite: options.Overwrite = False,
) -> str | None:
    """Sample images from a student or teacher."""
    from mfkit.autoencoders.files import autoencoder_of
    from mfkit.config.presets import resolve
    from mfkit.data.latents import open_latents
    from mfkit.errors import UsageError
    from mfkit.flow.solvers import SOLVERS
    from mfkit.inference.best_times import read_times
    from mfkit.inference.guided import guided_teacher
    from mfkit.inference.images import write_images
    from mfkit.inference.sample import Sampling
    from mfkit.models.files import open_generator

    generator = open_generator(model)
    settings = resolve(SampleSettings, "sample", None, flags)
    guided = guided_teacher(generator, resolve(Guidance, "sample", None, flags), guide)
    grid_of_times = read_times(times, generator) if times else None
    given = open_latents("trajectories", noise, classes=generator.num_classes) if noise else None
    if given and flags.get("labels"):
        raise UsageError("--labels: noise of trajectories has labels of its own; leave out one of the two")
    stochastic = settings.solver is not None and SOLVERS[settings.solver].stochastic
    if given and flags.get("seed") is not None and not stochastic:
        raise UsageError("--seed draws noise, which --noise gives: leave out one of the two")
    job = Sampling(guided, autoencoder_of(generator.artifact, rae), count, settings, grid_of_times, given)
    return write_images(job, output, tar=format == "tar", grid=grid, overwrite=overwrite)
