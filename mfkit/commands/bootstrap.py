"""``mfkit bootstrap``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.config.settings import GeneratorSettings

_NAMES = {None: "mft", "mean-flow": "mft"}
"""Of the file, by objective, where it is not the objective's own."""


@command(
    "Train", GeneratorSettings, stage="bootstrap",
    examples="""
    mfkit bootstrap --init mfd.safetensors -o mft.safetensors
    mfkit bootstrap --init cmt.safetensors --objective drifting \\
        -o drift.safetensors
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

    Mean-flow training by the conditional velocity e - x in place of the teacher's, or post-training by a distance
    between distributions (drifting, frechet), on the latents that the student was trained on. Without -o it is
    written beside it, as mft.safetensors, or by its objective's name. From random weights: train-mean-flow.
    """
    from mfkit.commands.training import latents_of, train_student
    from mfkit.models.files import open_generator

    student = open_generator(init, "student")
    name = _NAMES.get(flags.get("objective"), flags.get("objective"))
    output = output or init.with_name(f"{name}.safetensors")
    return train_student(
        "bootstrap", student, lambda: latents_of(student, latents, run), output, run, flags, given=latents
    )
