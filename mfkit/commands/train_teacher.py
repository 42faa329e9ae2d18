"""``mfkit train-teacher``."""

from typing import Annotated, Any

import typer

from mfkit.commands import options
from mfkit.config.settings import FlowSettings, GeneratorSettings


def register(app: typer.Typer) -> None:
    @options.command(
        app, "train-teacher", FlowSettings,
        GeneratorSettings,
        examples="`mfkit train-teacher latents/ -o teacher.safetensors`, "
        "`accelerate launch -m mfkit train-teacher latents/ --model XL -o teacher.safetensors`",
    )  # fmt: skip
    def train_teacher(
        latents: Annotated[str, typer.Argument(metavar="LATENTS", help="Shards of latents.")],
        output: options.RequiredOutput,
        flags: dict[str, Any],
        preset: options.Preset = None,
        model: options.Model = None,
        classes: options.Classes = None,
        overwrite: options.Overwrite = False,
        restart: options.Restart = False,
        on_bad: options.BadInput = "error",
        dry_run: options.DryRun = False,
        log_with: options.LogWith = None,
    ) -> str:
        """Latents → the teacher: a velocity network, by flow matching."""
        from mfkit.commands.common import execution, inherited_preset
        from mfkit.config import presets
        from mfkit.data.latents import open_latents
        from mfkit.training import teacher

        rows = open_latents(latents, classes=classes, on_bad=on_bad)
        preset = inherited_preset(preset, rows.artifact)
        settings = presets.resolve(GeneratorSettings, "train-teacher", preset, flags)
        flow = presets.resolve(FlowSettings, "train-teacher", preset, flags)
        plan = teacher.plan(rows, model or presets.MODELS[preset], preset, settings, flow)
        return plan.execute(execution(output, overwrite, restart, dry_run, log_with))
