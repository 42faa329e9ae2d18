"""``mfkit bootstrap``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mfkit.commands import options
from mfkit.settings import GeneratorSettings, MeanFlowSettings


def register(app: typer.Typer) -> None:
    @options.command(
        app, "bootstrap", MeanFlowSettings, GeneratorSettings,
        examples="`mfkit bootstrap --init mfd.safetensors -o mft.safetensors`",
    )  # fmt: skip
    def bootstrap(
        init: Annotated[Path, typer.Option(help="Student to start from.", metavar="FILE")],
        flags: dict[str, Any],
        latents: options.Latents = None,
        output: options.Output = None,
        preset: options.Preset = None,
        overwrite: options.Overwrite = False,
        restart: options.Restart = False,
        dry_run: options.DryRun = False,
        log_with: options.LogWith = None,
    ) -> str:
        """Student → a better one: mean-flow training with the one-point velocity e - x in place of the teacher's.

        It trains on the latents that the student was trained on. Without -o it is written beside it, as
        mft.safetensors.
        """
        from mfkit import presets
        from mfkit.commands.common import execution, inherited_preset
        from mfkit.files.artifact import open_artifact
        from mfkit.stages.inputs import follow, open_latents
        from mfkit.stages.meanflow import plan_bootstrap

        artifact = open_artifact(init, kinds=("student",))
        location = follow(latents, artifact, "latents", "--latents")
        rows = open_latents(location, classes=artifact.config["network"]["classes"])
        preset = inherited_preset(preset, artifact)
        settings = presets.resolve(GeneratorSettings, "bootstrap", preset, flags)
        flow = presets.resolve(MeanFlowSettings, "bootstrap", preset, flags)
        plan = plan_bootstrap(rows, artifact, preset, settings, flow)
        output = output or init.with_name("mft.safetensors")
        return plan.execute(execution(output, overwrite, restart, dry_run, log_with))
