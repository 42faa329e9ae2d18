"""``mfkit train-teacher``."""

from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.config.settings import FlowSettings, GeneratorSettings


@options.command(
    "Train", FlowSettings, GeneratorSettings, stage="train-teacher",
    examples="""
    mfkit train-teacher latents/ -o teacher.safetensors
    accelerate launch -m mfkit train-teacher latents/ --model XL -o t.safetensors
    """,
)  # fmt: skip
def train_teacher(
    latents: Annotated[str, typer.Argument(metavar="LATENTS", help="Shards of latents, or - for a stream.")],
    output: options.RequiredOutput,
    run: options.Run,
    flags: options.Flags,
    model: options.Model = None,
    classes: options.Classes = None,
) -> str:
    """Train the velocity network on latents.

    Its ODE leads from noise to latents. All stages after this one follow it.
    """
    from mfkit.commands.training import train_from_latents

    return train_from_latents("train-teacher", "teacher", latents, model, classes, output, run, flags)
