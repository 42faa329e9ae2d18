"""``mfkit trajectories``."""

from typing import Annotated, Any

import typer

from mfkit.commands import options
from mfkit.config.settings import TrajectorySettings


def register(app: typer.Typer) -> None:
    @options.command(
        app, "trajectories", TrajectorySettings,
        examples="`mfkit trajectories --teacher teacher.safetensors -n 6000 -o traj/`, "
        "`mfkit trajectories --teacher teacher.safetensors -n 44800 -o - | "
        "mfkit midtrain - --teacher teacher.safetensors --pairs 4`",
    )  # fmt: skip
    def trajectories(
        teacher: options.Teacher,
        count: Annotated[int, typer.Option("-n", "--count", help="Trajectories to solve.", min=1, metavar="N")],
        output: options.OutputFolderOrStream,
        flags: dict[str, Any],
        preset: options.Preset = None,
        overwrite: options.Overwrite = False,
    ) -> str | None:
        """Teacher → its ODE's states from noise to data, each with its true time."""
        from mfkit.artifacts.artifact import open_artifact
        from mfkit.commands.common import inherited_preset
        from mfkit.config import presets
        from mfkit.inference.trajectories import solve

        preset = inherited_preset(preset, open_artifact(teacher, kinds=("teacher",)))
        settings = presets.resolve(TrajectorySettings, "trajectories", preset, flags)
        return solve(teacher, count, output, settings, overwrite=overwrite)
