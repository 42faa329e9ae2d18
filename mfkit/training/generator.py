"""The training of a generator, teacher or student: one for all stages; the objective and the velocity differ."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather, reduce
from torch import nn

from mfkit.artifacts.artifact import Artifact, Provenance, record_provenance
from mfkit.config.presets import PresetName
from mfkit.config.settings import GeneratorSettings
from mfkit.data.dataset import IndexedTars
from mfkit.data.latents import LatentDataset, check_fit
from mfkit.data.loader import Batch as LoadedBatch
from mfkit.data.order import ClassGroups, ClassIndices, TrainingOrder, shuffle
from mfkit.data.stream import StreamDataset
from mfkit.errors import InputError, UsageError
from mfkit.flow.guidance import Velocity
from mfkit.flow.objectives.base import Batch, Features, Loss, Models, Objective, Stage
from mfkit.flow.random import Draws
from mfkit.flow.times import default_time_shift
from mfkit.inference.guided import GuidedTeacher
from mfkit.models.architectures import architecture_of
from mfkit.models.files import GeneratorFile, save_generator
from mfkit.models.generator import Architecture, Generator, GeneratorKind
from mfkit.runtime.distributed import processes
from mfkit.runtime.precision import autocast
from mfkit.runtime.seeding import seeded
from mfkit.training.product import produce
from mfkit.training.sample_grid import draw_sample_grid
from mfkit.training.task import LossFunction, RunOptions, Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A generator before its training."""

    architecture: str
    network: Generator
    time_shift: float
    class_names: list[str]
    inputs: dict[str, Artifact]
    trained_spaces: list[dict[str, Any]] = field(default_factory=list)
    """Feature spaces whose distance it was trained by, in this run or before."""


def with_late_r(architecture: Architecture, config: Any) -> Any:
    """:raises UsageError: the architecture has no such students."""
    if not hasattr(config, "late_r"):
        raise UsageError(f"--late-r: {architecture.name} has no head that r could be kept to")
    return replace(config, late_r=True)


def fresh_start(
    kind: GeneratorKind, data: LatentDataset, model: str, time_shift: float, seed: int, *, late_r: bool = False
) -> Start:
    """Random weights for these latents.

    :param model: see :func:`~mfkit.models.architectures.architecture_of`. :param time_shift: 0 is the default for
        the latents' shape.
    """
    architecture, size = architecture_of(model)
    config = architecture.new_config(data.shape, len(data.class_names), size)
    config = with_late_r(architecture, config) if late_r else config
    with seeded(seed):
        network = architecture.build(kind, config)
    shift = time_shift or default_time_shift(*config.latent_shape)
    return Start(architecture.name, network, shift, data.class_names, data.artifact.reference("rae"))


def student_start(
    init: GeneratorFile, data: LatentDataset | None, seed: int, role: str = "init", *, late_r: bool = False
) -> Start:
    """A student that goes on from a student, or starts as a teacher: u(z, r, t, y) = v(z, t, y).

    :param data: what it is trained on; None for no latents. :param role: what provenance calls ``init``.
    :param late_r: see :class:`~mfkit.models.generator.Student`. :raises UsageError: ``init`` has no say in it.
    """
    if late_r and init.kind == "student" and not getattr(init.network_config, "late_r", False):
        raise UsageError(f"--late-r: {init.path} is a student already, whose r goes everywhere")
    if data:
        check_fit(data, init)
    network = init.network
    if init.kind == "teacher":
        changed = [with_late_r(init.architecture, init.network_config)] if late_r else []
        with seeded(seed):
            network = init.architecture.student.from_teacher(network, *changed)
    return _go_on(init, network, data, role)


def teacher_start(init: GeneratorFile, data: LatentDataset, time_shift: float | None) -> Start:
    """A teacher that goes on from a teacher.

    :param time_shift: None for that of ``init``; 0 is the default for the latents' shape.
    """
    check_fit(data, init)
    start = _go_on(init, init.network, data, "init")
    shift = start.time_shift if time_shift is None else time_shift
    return replace(start, time_shift=shift or default_time_shift(*init.latent_shape))


def _go_on(init: GeneratorFile, network: Generator, data: LatentDataset | None, role: str) -> Start:
    own, about = init.artifact, init.description
    inputs = {role: own, **own.reference("latents"), **own.reference("rae")}
    if data:  # an imported student may not know its RAE
        inputs = {**inputs, **data.artifact.reference("rae"), **inputs}
    return Start(init.architecture.name, network, about.time_shift, about.class_names, inputs, about.trained_spaces)


def class_indices(data: LatentDataset | None, num_classes: int) -> ClassIndices:
    """Classes as often as real images have them, where there are latents to tell; else all alike."""
    if data and isinstance(data.dataset, IndexedTars):
        return ClassIndices([label for label in data.dataset.labels if label >= 0])
    return ClassIndices(range(num_classes))


def training_order(objective: Objective, data: LatentDataset | None, num_classes: int) -> TrainingOrder | StreamDataset:
    """What an objective reads, in the order of a run.

    :param num_classes: of the generator. :raises UsageError: it reads by class, and the latents are a stream.
    """
    if objective.reads is None or data is None:
        return class_indices(data, num_classes)
    if not objective.class_group:
        return shuffle(data.dataset)
    if not isinstance(data.dataset, IndexedTars):
        raise UsageError(
            f"--objective {objective.name} reads groups of one class, by random access; {data.artifact.path} is a "
            "stream: write it to a folder first, as by mfkit encode -o DIR"
        )
    return ClassGroups(data.dataset, data.class_names, objective.class_group)


def models_of(network: Generator, velocity: Velocity | None = None, features: Features | None = None) -> Models:
    """What an objective may evaluate, with ``network`` without a wrapper; its state is still missing."""
    if processes().num_processes == 1:
        return Models(network, network, velocity, features=features)
    return Models(network, network, velocity, {}, features, gather, partial(reduce, reduction="sum"))


def generator_loss(
    stage: Stage, network: Generator, models: Models, objective: Objective, settings: GeneratorSettings,
    time_shift: float,
) -> LossFunction:  # fmt: skip
    """An objective as the loss of loaded samples, with their class dropout and their random streams."""
    config = network.config
    samples = settings.steps * (settings.batch_size // objective.rows_per_sample)

    def losses(net: nn.Module, loaded: LoadedBatch, pieces: int) -> Iterator[Loss]:
        data = {name: column for name, column in loaded.columns.items() if name != "label"}
        if "latent" in data:
            data["latent"] = data["latent"].float()
        labels = loaded.columns["label"]
        draws = Draws(settings.seed, stage, loaded.positions, labels.device)
        dropped = draws.uniform("class-dropout") < settings.class_dropout
        progress = (torch.tensor(loaded.positions) / samples).to(labels.device, non_blocking=True)
        y = labels.masked_fill(dropped, config.num_classes)  # which stands for "no label"
        batch = Batch(data, y, loaded.positions, progress, draws, time_shift, config.latent_shape)
        return objective.losses(replace(models, network=net), batch, pieces)

    return losses


def begin(
    stage: Stage, network: Generator, models: Models, objective: Objective, settings: GeneratorSettings,
    time_shift: float, order: ClassIndices,
) -> None:  # fmt: skip
    """Lets an objective see samples of the starting network, whose noise is none that it is trained on."""
    world, shape, device = processes(), network.config.latent_shape, processes().device
    rows = settings.micro_batch or max(1, settings.batch_size // world.num_processes)
    # Every process has as many batches: under FSDP each of them is a matter of all.
    count = -(-objective.samples_at_start // (world.num_processes * rows))
    parts = np.array_split(np.arange(objective.samples_at_start), world.num_processes * count)

    def batches() -> Iterator[Batch]:
        for part in parts[count * world.process_index : count * (world.process_index + 1)]:
            positions = part.tolist()
            labels = order.read(positions, settings.seed)["label"].to(device)
            draws = Draws(settings.seed, f"{stage}/begin", positions, device)
            yield Batch({}, labels, positions, torch.zeros(len(labels)), draws, time_shift, shape)

    with autocast(settings.precision, device):
        objective.begin(models, batches())


def train_generator(
    stage: Stage, start: Start, data: LatentDataset | None, objective: Objective, settings: GeneratorSettings,
    preset: PresetName, options: RunOptions, *, teacher: GuidedTeacher | None = None,
) -> str:  # fmt: skip
    """Trains a generator and writes it.

    :param data: None where the objective looks at no latents.
    :param objective: resolved for the precision.
    :param teacher: whose velocity the objective takes; None for the conditional one, e - x.
    :returns: the line for standard output.
    """
    network, shift = start.network, start.time_shift
    inputs = dict(start.inputs)
    if data:
        inputs[objective.reads or "latents"] = data.artifact
    if teacher:
        inputs |= teacher.inputs
        if data:
            check_fit(data, teacher.file)
    if settings.sample_every and not options.dry_run and not ("rae" in inputs and inputs["rae"].path.exists()):
        raise InputError("--sample-every needs the RAE, which is not where the latents say it is")
    spaces, trained_spaces = None, start.trained_spaces
    if objective.spaces:
        from mfkit.training.spaces import open_spaces  # timm and diffusers take seconds to import

        spaces = open_spaces(objective.spaces, network.config.latent_shape, data, inputs, settings.workers)
        inputs |= spaces.inputs
        trained_spaces = trained_spaces + [one for one in spaces.described if one not in trained_spaces]
    chosen: dict[str, Any] = {"objective": objective.name, **asdict(objective), "time_shift": shift}
    if teacher:
        chosen |= asdict(teacher.rule)
    resolved = asdict(settings) | chosen
    config = {
        "time_shift": shift, "class_names": start.class_names, "preset": preset,
        "class_dropout": settings.class_dropout, **({"trained_spaces": trained_spaces} if trained_spaces else {}),
    }  # fmt: skip
    classes = len(data.class_names) if data else network.config.num_classes
    order = training_order(objective, data, classes)
    digests: dict[str, Any] = {role: artifact.digest for role, artifact in inputs.items()}
    if spaces:
        digests["spaces"] = spaces.described

    def save(path: Path, provenance: Provenance) -> None:
        save_generator(path, network, start.architecture, config, provenance)

    def save_as_it_is(path: Path) -> None:
        save(path, record_provenance(options.output.parent, inputs, seed=settings.seed, settings=resolved))

    measure = None
    if settings.fid_every and not options.dry_run:
        from mfkit.training.measure import Measure  # timm takes seconds to import

        if trained_spaces:
            logger.warning("--fid-every measures by the RAE's encoder, whose features this student was trained by")
        measure = Measure(network, shift, inputs, settings, options.output, save_as_it_is)

    def tasks() -> Iterator[Task]:
        velocity = None
        if teacher:
            velocity = teacher.velocity(processes().device, compiled=settings.compile)
        models = models_of(network, velocity, spaces.features if spaces else None)
        models = replace(models, state=objective.initial_state(models))
        yield Task(
            network=network, data=order, loss=generator_loss(stage, network, models, objective, settings, shift),
            settings=settings, blocks=network.blocks, state=models.state, rows_per_sample=objective.rows_per_sample,
            coupling=objective.coupling,
            begin=partial(begin, stage, network, models, objective, settings, shift, class_indices(data, classes))
            if objective.samples_at_start
            else None,
            after_step=partial(objective.after_step, models),
            resume_key=asdict(network.config) | chosen | digests,
            draw_grid=lambda step: draw_sample_grid(network, shift, inputs["rae"], options.output, step),
            save=save_as_it_is, measure=measure, measure_every=settings.fid_every,
        )  # fmt: skip

    return produce(
        kind=network.kind, network=network, inputs=inputs, settings=resolved, seed=settings.seed,
        tasks=tasks, options=options, save=save,
    )  # fmt: skip
