"""``mfkit train-mean-flow``."""

from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.config.settings import FlowSettings, GeneratorSettings


@command(
    "Train", FlowSettings, GeneratorSettings, stage="train-mean-flow",
    examples="""
    mfkit train-mean-flow latents/ --model XL -o mf.safetensors
    """,
)  # fmt: skip
def train_mean_flow(
    latents: Annotated[str, typer.Argument(metavar="LATENTS", help="Shards of latents, or - for a stream.")],
    output: options.RequiredOutput,
    run: options.Run,
    flags: options.Flags,
    model: options.Model = None,
    classes: options.Classes = None,
    late_r: options.LateR = False,
) -> str:
    """Train a student from random weights.

    Vanilla mean flow, without a teacher: the baseline that the chain of teacher, midtrain and distill is held
    against.
    """
    from mfkit.commands.training import train_from_latents

    return train_from_latents("train-mean-flow", "student", latents, model, classes, output, run, flags, late_r=late_r)
