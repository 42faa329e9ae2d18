"""``mfkit times``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.flow.guidance import Guidance


@command(
    "Sample and evaluate", Guidance,
    examples="""
    mfkit times teacher.safetensors traj/ --steps 8 -o times.json
    mfkit sample teacher.safetensors -n 100 -o samples --times times.json
    """,
)  # fmt: skip
def times(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Student's or teacher's file.")],
    trajectories: Annotated[str, typer.Argument(metavar="TRAJECTORIES", help="Shards of its teacher's trajectories.")],
    steps: Annotated[int, typer.Option(help="Steps that the grid has.", min=1, metavar="N")],
    output: options.RequiredOutput,
    flags: options.Flags,
    guide: options.Guide = None,
    count: Annotated[int, typer.Option("-n", "--count", help="Trajectories to take.", min=1, metavar="N")] = 256,
    overwrite: options.Overwrite = False,
) -> str:
    """Find the best times for a few steps.

    Of the times of stored states, those are chosen whose Euler steps, or steps of the student's flow map, are nearest
    to the trajectories in sum (BOSS, arXiv 2312.16490). mfkit sample takes the file by --times. A teacher has the
    guidance that the trajectories were solved with.
    """
    from mfkit.config.presets import resolve
    from mfkit.data.latents import open_latents
    from mfkit.inference.best_times import write_times
    from mfkit.inference.guided import guided_teacher
    from mfkit.models.files import open_generator

    opened = open_generator(model)
    data = open_latents("trajectories", trajectories, classes=opened.num_classes)
    guided = guided_teacher(opened, resolve(Guidance, "times", None, flags), guide)
    return write_times(guided, data, steps, count, output, overwrite=overwrite)
