"""``mfkit trajectories``."""

from typing import Annotated

import typer

from mfkit.commands import options
from mfkit.commands.subcommand import command
from mfkit.config.settings import TrajectorySettings
from mfkit.flow.guidance import Guidance


@command(
    "Train", TrajectorySettings, Guidance,
    examples="""
    mfkit trajectories --teacher teacher.safetensors -n 6000 -o traj/
    mfkit trajectories --teacher teacher.safetensors -n 44800 -o - |
        mfkit midtrain - --teacher teacher.safetensors --pairs 4
    """,
)  # fmt: skip
def trajectories(
    teacher: options.Teacher,
    count: Annotated[int, typer.Option("-n", "--count", help="Trajectories to solve.", min=1, metavar="N")],
    output: options.OutputFolderOrStream,
    flags: options.Flags,
    preset: options.Preset = None,
    guide: options.Guide = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", help="Solve from these latents back to their noise, the first N.", metavar="SHARDS"),
    ] = None,
    overwrite: options.Overwrite = False,
) -> str | None:
    """Solve the teacher's ODE and store its states.

    Every state from noise to data is stored with its time, for midtrain. With --from, the ODE is solved backwards from
    real latents; mfkit sample --noise then draws them anew from the noise where they end.
    """
    from mfkit.config.presets import resolve
    from mfkit.data.latents import open_latents
    from mfkit.errors import UsageError
    from mfkit.inference.guided import guided_teacher
    from mfkit.inference.inversion import Inversion
    from mfkit.inference.output import write_shards_or_stream
    from mfkit.inference.trajectories import Trajectories
    from mfkit.models.files import open_generator

    opened = open_generator(teacher, "teacher")
    preset = options.preset_or(preset, opened.description.preset, teacher)
    settings = resolve(TrajectorySettings, "trajectories", preset, flags)
    guided = guided_teacher(opened, resolve(Guidance, "trajectories", preset, flags), guide)
    if from_ is None:
        return write_shards_or_stream(Trajectories(guided, count, settings), output, overwrite=overwrite)
    if flags.get("seed") is not None:
        raise UsageError("--seed draws noise, which --from solves for: leave out one of the two")
    data = open_latents("latents", from_, classes=opened.num_classes)
    return write_shards_or_stream(Inversion(guided, data, count, settings), output, overwrite=overwrite)
