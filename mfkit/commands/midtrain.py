"""``mfkit midtrain``."""

from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.config.settings import GeneratorSettings


@command(
    "Train", GeneratorSettings, stage="midtrain",
    examples="""
    mfkit midtrain traj/ --teacher teacher.safetensors -o cmt.safetensors
    mfkit trajectories … -o - | mfkit midtrain - --teacher teacher.safetensors
    """,
)  # fmt: skip
def midtrain(
    trajectories: Annotated[
        str, typer.Argument(metavar="TRAJECTORIES", help="Shards of trajectories, or - for a stream.")
    ],
    teacher: options.Teacher,
    run: options.Run,
    flags: options.Flags,
    output: options.Output = None,
    late_r: options.LateR = False,
) -> str:
    """Train a student on the teacher's chords.

    Consistency mid-training on stored trajectories. The student starts as the teacher. Without -o it is written
    beside the teacher, as cmt.safetensors.
    """
    from mfkit.commands.training import train_student
    from mfkit.data.latents import check_trajectories, open_latents
    from mfkit.models.files import open_generator

    opened = open_generator(teacher, "teacher")
    data = open_latents("trajectories", trajectories, classes=opened.num_classes, reading=run.reading)
    check_trajectories(data, opened)
    output = output or teacher.with_name("cmt.safetensors")
    return train_student("midtrain", opened, lambda: data, output, run, flags, late_r=late_r)
