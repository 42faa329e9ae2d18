"""``mfkit train-teacher``."""

from pathlib import Path
from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.config.settings import FlowSettings, GeneratorSettings
from mfkit.errors import UsageError


@command(
    "Train", FlowSettings, GeneratorSettings, stage="train-teacher",
    examples="""
    mfkit train-teacher latents/ -o teacher.safetensors
    accelerate launch -m mfkit train-teacher latents/ --model XL -o t.safetensors
    mfkit train-teacher traj/ --objective reflow --init teacher.safetensors \\
        -o straight.safetensors
    """,
)  # fmt: skip
def train_teacher(
    latents: Annotated[str, typer.Argument(metavar="LATENTS", help="Shards of latents, or - for a stream.")],
    output: options.RequiredOutput,
    run: options.Run,
    flags: options.Flags,
    model: options.Model = None,
    classes: options.Classes = None,
    init: Annotated[
        Path | None, typer.Option(help="Teacher to start from, in place of random weights.", metavar="FILE")
    ] = None,
) -> str:
    """Train the velocity network on latents.

    Its ODE leads from noise to latents. All stages after this one follow it.
    """
    from mfkit.commands.training import train_from_latents, train_teacher_further
    from mfkit.models.files import open_generator

    if not init:
        return train_from_latents("train-teacher", "teacher", latents, model, classes, output, run, flags)
    if model or classes:
        raise UsageError(f"{'--model' if model else '--classes'}: with --init they are those of {init}; leave it out")
    return train_teacher_further(open_generator(init, "teacher"), latents, output, run, flags)
