"""What the commands that train generators share. Imports torch: for use inside commands only."""

from collections.abc import Callable
from pathlib import Path

from mfkit.commands.options import Flags, Run, preset_or
from mfkit.config.presets import PRESETS, objective_of, resolve, resolve_training
from mfkit.config.settings import FlowSettings
from mfkit.data.latents import LatentDataset, check_recorded, open_latents, recorded_latents
from mfkit.errors import UsageError
from mfkit.flow.objectives.base import Stage
from mfkit.inference.guided import GuidedTeacher
from mfkit.models.files import GeneratorFile
from mfkit.models.generator import GeneratorKind
from mfkit.training.generator import fresh_start, student_start, teacher_start, train_generator


def train_from_latents(
    stage: Stage, kind: GeneratorKind, latents: str, model: str | None, classes: int | None, output: Path, run: Run,
    flags: Flags, *, late_r: bool = False,
) -> str:  # fmt: skip
    """Trains a generator from random weights."""
    data = _read_by(stage, latents, classes, run, flags)
    preset = preset_or(run.preset, data.preset, latents)
    settings, objective = resolve_training(stage, preset, flags)
    flow = resolve(FlowSettings, stage, preset, flags)
    start = fresh_start(kind, data, model or PRESETS[preset].model, flow.time_shift, settings.seed, late_r=late_r)
    return train_generator(stage, start, data, objective, settings, preset, run.options(output))


def train_teacher_further(init: GeneratorFile, latents: str, output: Path, run: Run, flags: Flags) -> str:
    """Trains a teacher from the weights of another."""
    stage: Stage = "train-teacher"
    data = _read_by(stage, latents, init.num_classes, run, flags)
    preset = preset_or(run.preset, init.description.preset, init.path)
    settings, objective = resolve_training(stage, preset, flags)
    start = teacher_start(init, data, flags.get("time_shift"))
    return train_generator(stage, start, data, objective, settings, preset, run.options(output))


def _read_by(stage: Stage, latents: str, classes: int | None, run: Run, flags: Flags) -> LatentDataset:
    """Latents, or trajectories where the objective reads them."""
    reads = objective_of(stage, flags).reads or "latents"
    return open_latents(reads, latents, classes=classes, reading=run.reading)


def train_student(
    stage: Stage, init: GeneratorFile, opened: Callable[[], LatentDataset], output: Path, run: Run, flags: Flags, *,
    teacher: GuidedTeacher | None = None, given: str | None = None, late_r: bool = False,
) -> str:  # fmt: skip
    """Trains a student that starts as ``init``.

    :param opened: opens the latents, where the objective looks at them. :param given: those that the user names.
    """
    source = teacher.file if teacher else init
    preset = preset_or(run.preset, source.description.preset, source.path)
    settings, objective = resolve_training(stage, preset, flags)
    if given is not None and not objective.needs_latents:
        raise UsageError("--latents: this training looks at no latents; leave it out")
    if run.cache and not objective.needs_latents:
        raise UsageError("--cache: this training looks at no latents; leave it out")
    data = opened() if objective.needs_latents else None
    role = "teacher" if teacher and init is teacher.file else "init"
    start = student_start(init, data, settings.seed, role, late_r=late_r)
    return train_generator(stage, start, data, objective, settings, preset, run.options(output), teacher=teacher)


def latents_of(generator: GeneratorFile, given: str | None, run: Run) -> LatentDataset:
    """The latents that a generator was trained on, or those that the user names in their place."""
    location = recorded_latents(generator.artifact, given)
    data = open_latents("latents", location, classes=generator.num_classes, reading=run.reading)
    check_recorded(generator.artifact, data, given)
    return data
