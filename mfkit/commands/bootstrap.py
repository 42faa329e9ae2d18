"""``mfkit bootstrap``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mfkit.commands import options
from mfkit.config.settings import FlowSettings, GeneratorSettings, MeanFlowSettings


def register(app: typer.Typer) -> None:
    @options.command(
        app, "bootstrap", MeanFlowSettings, GeneratorSettings,
        examples="`mfkit bootstrap --init mfd.safetensors -o mft.safetensors`, "
        "`mfkit bootstrap --latents latents/ --model XL -o mf.safetensors`",
    )  # fmt: skip
    def bootstrap(
        flags: dict[str, Any],
        init: Annotated[
            Path | None, typer.Option(help="Student to start from; without one, random weights.", metavar="FILE")
        ] = None,
        latents: options.Latents = None,
        model: options.Model = None,
        time_shift: Annotated[
            float | None,
            typer.Option(help="Without --init: see train-teacher; else the student's own.", min=0, metavar="S"),
        ] = None,
        output: options.Output = None,
        preset: options.Preset = None,
        overwrite: options.Overwrite = False,
        restart: options.Restart = False,
        on_bad: options.BadInput = "error",
        dry_run: options.DryRun = False,
        log_with: options.LogWith = None,
    ) -> str:
        """Student → a better one: mean-flow training with the one-point velocity e - x in place of the teacher's.

        It trains on the latents that the student was trained on. Without -o it is written beside it, as
        mft.safetensors. Without --init it is vanilla mean flow, from random weights, on --latents.
        """
        from mfkit.artifacts.artifact import open_artifact
        from mfkit.commands.common import execution, inherited_preset
        from mfkit.config import presets
        from mfkit.data.latents import follow, open_latents
        from mfkit.errors import UsageError
        from mfkit.training.meanflow import plan_bootstrap, plan_from_scratch

        if init is None and (latents is None or output is None):
            raise UsageError("give --init, or --latents and -o to start from random weights")
        if init is not None and (model or time_shift is not None):
            raise UsageError("--model and --time-shift are for random weights; a student has its own")
        artifact = open_artifact(init, kinds=("student",)) if init else None
        if artifact:
            location = follow(latents, artifact, "latents", "--latents")
            rows = open_latents(location, classes=artifact.config["network"]["classes"], on_bad=on_bad)
        else:
            rows = open_latents(str(latents), on_bad=on_bad)
        preset = inherited_preset(preset, artifact or rows.artifact)
        settings = presets.resolve(GeneratorSettings, "bootstrap", preset, flags)
        flow = presets.resolve(MeanFlowSettings, "bootstrap", preset, flags)
        if artifact:
            plan = plan_bootstrap(rows, artifact, preset, settings, flow)
        else:
            times = presets.resolve(FlowSettings, "train-teacher", preset, {"time_shift": time_shift})
            size = model or presets.MODELS[preset]
            plan = plan_from_scratch(rows, size, times.time_shift, preset, settings, flow)
        target = output or Path(str(init)).with_name("mft.safetensors")
        return plan.execute(execution(target, overwrite, restart, dry_run, log_with))
