"""``mfkit bootstrap``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.config.settings import GeneratorSettings


@options.command(
    "Train", GeneratorSettings, stage="bootstrap",
    examples="""
    mfkit bootstrap --init mfd.safetensors -o mft.safetensors
    """,
)  # fmt: skip
def bootstrap(
    init: Annotated[Path, typer.Option(help="Student to start from.", metavar="FILE")],
    run: options.Run,
    flags: options.Flags,
    latents: options.Latents = None,
    output: options.Output = None,
) -> str:
    """Improve a student without its teacher.

    Mean-flow training by the conditional velocity e - x in place of the teacher's, on the latents that the student
    was trained on. Without -o it is written beside it, as mft.safetensors. From random weights: train-mean-flow.
    """
    from mfkit.commands.training import latents_of, train_student
    from mfkit.models.files import open_generator

    student = open_generator(init, "student")
    data = latents_of(student, latents, run)
    return train_student("bootstrap", student, data, output or init.with_name("mft.safetensors"), run, flags)
