"""``mfkit distill``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.config.settings import GeneratorSettings
from mfkit.flow.guidance import Guidance


@command(
    "Train", Guidance, GeneratorSettings, stage="distill",
    examples="""
    mfkit distill --teacher teacher.safetensors --init cmt.safetensors
    mfkit distill --teacher teacher.safetensors -o mfd.safetensors
    """,
)  # fmt: skip
def distill(
    teacher: options.Teacher,
    run: options.Run,
    flags: options.Flags,
    init: Annotated[
        Path | None, typer.Option(help="Student to start from.  [default: the teacher]", metavar="FILE")
    ] = None,
    latents: options.Latents = None,
    guide: options.Guide = None,
    late_r: options.LateR = False,
    output: options.Output = None,
) -> str:
    """Distill the teacher into a few-step student.

    The student learns the average velocity, on the latents that the teacher was trained on. Without -o it is
    written beside the teacher, as mfd.safetensors.
    """
    from mfkit.commands.training import latents_of, train_student
    from mfkit.config.presets import resolve
    from mfkit.inference.guided import guided_teacher
    from mfkit.models.files import open_generator

    opened = open_generator(teacher, "teacher")
    start = open_generator(init) if init else opened
    output = output or teacher.with_name("mfd.safetensors")
    guided = guided_teacher(opened, resolve(Guidance, "distill", None, flags), guide)
    return train_student(
        "distill", start, lambda: latents_of(opened, latents, run), output, run, flags, teacher=guided, given=latents,
        late_r=late_r,
    )  # fmt: skip
