"""``mfkit midtrain``."""

from typing import Annotated, Any

import typer

from mfkit.commands import options
from mfkit.config.settings import GeneratorSettings, MidtrainSettings


def register(app: typer.Typer) -> None:
    @options.command(
        app, "midtrain", MidtrainSettings, GeneratorSettings,
        examples="`mfkit midtrain traj/ --teacher teacher.safetensors -o cmt.safetensors`, "
        "`… | mfkit midtrain - --teacher teacher.safetensors -o cmt.safetensors`",
    )  # fmt: skip
    def midtrain(
        trajectories: Annotated[
            str, typer.Argument(metavar="TRAJECTORIES", help="Shards of trajectories, or - for a stream.")
        ],
        teacher: options.Teacher,
        flags: dict[str, Any],
        output: options.Output = None,
        preset: options.Preset = None,
        overwrite: options.Overwrite = False,
        restart: options.Restart = False,
        on_bad: options.BadInput = "error",
        dry_run: options.DryRun = False,
        log_with: options.LogWith = None,
    ) -> str:
        """Trajectories → a student that knows the teacher's long jumps (consistency mid-training).

        It starts as the teacher. Without -o it is written beside the teacher, as cmt.safetensors.
        """
        from mfkit.artifacts.artifact import open_artifact
        from mfkit.commands.common import execution, inherited_preset
        from mfkit.config import presets
        from mfkit.data.latents import open_trajectories
        from mfkit.training import midtrain

        artifact = open_artifact(teacher, kinds=("teacher",))
        rows = open_trajectories(trajectories, classes=artifact.config["network"]["classes"], on_bad=on_bad)
        preset = inherited_preset(preset, artifact)
        settings = presets.resolve(GeneratorSettings, "midtrain", preset, flags)
        pairs = presets.resolve(MidtrainSettings, "midtrain", preset, flags)
        plan = midtrain.plan(rows, teacher, preset, settings, pairs)
        output = output or teacher.with_name("cmt.safetensors")
        return plan.execute(execution(output, overwrite, restart, dry_run, log_with))
