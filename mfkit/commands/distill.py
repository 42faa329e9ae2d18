"""``mfkit distill``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mfkit.commands import options
from mfkit.config.settings import GeneratorSettings, MeanFlowSettings


def register(app: typer.Typer) -> None:
    @options.command(
        app, "distill", MeanFlowSettings, GeneratorSettings,
        examples="`mfkit distill --teacher teacher.safetensors`, "
        "`mfkit distill --teacher teacher.safetensors --init cmt.safetensors -o mfd.safetensors`",
    )  # fmt: skip
    def distill(
        teacher: options.Teacher,
        flags: dict[str, Any],
        init: Annotated[
            Path | None, typer.Option(help="Student to start from; the teacher by default.", metavar="FILE")
        ] = None,
        latents: options.Latents = None,
        output: options.Output = None,
        preset: options.Preset = None,
        overwrite: options.Overwrite = False,
        restart: options.Restart = False,
        on_bad: options.BadInput = "error",
        dry_run: options.DryRun = False,
        log_with: options.LogWith = None,
    ) -> str:
        """Teacher → a student of its average velocity (mean-flow distillation).

        It trains on the latents that the teacher was trained on. Without -o it is written beside the teacher, as
        mfd.safetensors.
        """
        from mfkit.artifacts.artifact import open_artifact
        from mfkit.commands.common import execution, inherited_preset
        from mfkit.config import presets
        from mfkit.data.latents import follow, open_latents
        from mfkit.training.meanflow import plan_distill

        artifact = open_artifact(teacher, kinds=("teacher",))
        start = open_artifact(init, kinds=("student", "teacher")) if init else artifact
        location = follow(latents, artifact, "latents", "--latents")
        rows = open_latents(location, classes=artifact.config["network"]["classes"], on_bad=on_bad)
        preset = inherited_preset(preset, artifact)
        settings = presets.resolve(GeneratorSettings, "distill", preset, flags)
        flow = presets.resolve(MeanFlowSettings, "distill", preset, flags)
        plan = plan_distill(rows, artifact, start, preset, settings, flow)
        output = output or teacher.with_name("mfd.safetensors")
        return plan.execute(execution(output, overwrite, restart, dry_run, log_with))
