"""A small project for one's own images: settings, the chain as a script, and how long it takes on this machine."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mfkit.artifacts.atomic import write_text
from mfkit.autoencoders.encoders import TINY
from mfkit.benchmark.bench import bench
from mfkit.benchmark.machine import machine
from mfkit.benchmark.settings import BenchSettings
from mfkit.config.presets import PRESETS, PresetName, resolve, resolve_training
from mfkit.config.settings import AutoencoderSettings, GeneratorSettings, TrainingSettings
from mfkit.data.images import class_names, native_size, open_images
from mfkit.data.stream import StreamDataset
from mfkit.errors import InputError, OutputError, UsageError
from mfkit.flow.objectives import Stage
from mfkit.training import log

_FILES = ("config.toml", "run.sh", "README.md")
_TRIAL_STEPS = 12
"""Of the autoencoder's trainings that are timed."""
_SAMPLES = 2000
"""Images that the finished student draws, to be judged."""
_ROUNDS = 3


@dataclass(frozen=True)
class Step:
    """A command of the chain."""

    command: str
    work: str
    seconds: float


def new_project(folder: Path, images: str, preset: PresetName) -> str:
    """Writes a folder with ``config.toml``, ``run.sh`` and ``README.md``.

    :param images: an IMAGES argument, which is looked at, and by which a minute's work is timed.
    :returns: the line for standard output.
    :raises OutputError: the folder has such files already.
    """
    for path in (folder, *(folder / name for name in _FILES)):
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path} exists; name another folder")
    sizes = resolve(AutoencoderSettings, "train-rae", preset)
    size = sizes.image_size or native_size(images, sizes.patch)
    dataset = open_images(images, size)
    if isinstance(dataset, StreamDataset):
        raise UsageError(f"{images} is a stream; a project reads its images more than once: give a folder or shards")
    as_it_is = dataset.artifact.is_keyword or "://" in images
    location = images if as_it_is else str(Path(images).absolute())  # also of a glob or brace range
    names = class_names(dataset.artifact)
    held = set(dataset.labels) - {-1}
    classes = len(names) or max(held, default=0) + 1
    if empty := set(range(classes)) - held:
        name = names[min(empty)] if names else f"class {min(empty)}"
        raise InputError(f"{images}: {name} has no images, which drifting needs of each class; remove it")
    unnamed = 0 if names else classes
    views = len(dataset) * (2 if PRESETS[preset].mirror else 1)
    usual = resolve_training("bootstrap", preset, {"objective": "drifting"})[1].class_group
    steps = list(_timed(images, preset, replace(sizes, image_size=size), views))
    about: dict[str, Any] = {
        "name": folder.resolve().name, "images": location, "quoted": shlex.quote(location), "count": len(dataset),
        "classes": classes, "unnamed": unnamed, "size": size, "preset": preset, "steps": steps,
        "minutes": sum(step.seconds for step in steps) / 60, "machine": machine(), "recipe": PRESETS[preset],
        "samples": _SAMPLES, "lengths": {stage: settings.steps for stage, (_, settings) in _trainings(preset).items()},
        "real": min(usual, max(2, views // classes)),
        "decoder_steps": resolve(TrainingSettings, "train-rae", preset).steps,
    }  # fmt: skip
    templates = Environment(
        loader=PackageLoader("mfkit.benchmark", ""), undefined=StrictUndefined, keep_trailing_newline=True,
        trim_blocks=True, autoescape=False,
    )  # fmt: skip
    for name in _FILES:
        write_text(folder / name, templates.get_template(f"project.{name}.jinja").render(about))
    (folder / "run.sh").chmod(0o755)
    return f"{folder}: about {about['minutes']:.0f} minutes on this machine; begin with {folder / 'run.sh'}"


def _trainings(preset: PresetName) -> dict[Stage, tuple[str | None, GeneratorSettings]]:
    """The objectives that the chain names, and the settings, of its stages."""
    objectives: dict[Stage, str | None] = {"train-teacher": None, "midtrain": None, "bootstrap": "drifting"}
    return {
        stage: (objective, resolve_training(stage, preset, {"objective": objective} if objective else {})[0])
        for stage, objective in objectives.items()
    }


def _timed(images: str, preset: PresetName, sizes: AutoencoderSettings, views: int) -> Iterator[Step]:
    """The commands of ``run.sh``, each with the seconds that it will take, start-up aside."""
    recipe = PRESETS[preset]
    settings = resolve(TrainingSettings, "train-rae", preset)
    pretraining, decoder = _autoencoder_rates(images, preset, sizes)
    seconds = settings.batch_size * (sizes.pretrain_steps / pretraining + settings.steps / decoder)
    yield Step("train-rae", f"{sizes.pretrain_steps:,} + {settings.steps:,} steps", seconds)
    tokens = (sizes.image_size // sizes.patch) ** 2

    def rate(stage: str, **more: Any) -> float:
        asked = BenchSettings(preset=preset, tokens=tokens, rounds=_ROUNDS, **more)
        (found,) = bench(stage, asked)
        return float(found["samples_per_second"])

    yield Step("encode", f"{views:,} views", views / rate("encode", batch_size=128))
    for stage, (objective, chosen) in _trainings(preset).items():
        if stage == "midtrain":
            number = recipe.trajectories
            yield Step("trajectories", f"{number:,}", number / rate("trajectories", batch_size=128))
        rows = chosen.batch_size
        name = f"{stage} --objective {objective}" if objective else stage
        yield Step(
            name, f"{chosen.steps:,} steps", chosen.steps * rows / rate(stage, batch_size=rows, objective=objective)
        )
    yield Step("sample", f"{_SAMPLES:,} images", _SAMPLES / rate("sample", batch_size=128))


def _autoencoder_rates(images: str, preset: PresetName, sizes: AutoencoderSettings) -> tuple[float, float]:
    """Images a second, in the encoder's pre-training and in that of the decoder: by the command itself.

    :raises InputError: it fails on these images.
    """
    options = {
        "--encoder": TINY, "--preset": preset, "--image-size": sizes.image_size, "--patch": sizes.patch,
        "--pretrain-steps": _TRIAL_STEPS, "--steps": _TRIAL_STEPS, "--log-every": _TRIAL_STEPS // 2,
    }  # fmt: skip
    with TemporaryDirectory() as folder:
        output = Path(folder) / "rae.safetensors"
        words = ["train-rae", "-q", "-o", str(output), *(str(word) for pair in options.items() for word in pair)]
        done = subprocess.run([sys.executable, "-m", "mfkit", *words, "--", images], capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"training on {images} fails: {done.stderr.strip()}")
        logs = (output.with_name(f"rae{part}.log.jsonl") for part in (".encoder", ""))
        first, last = (float(log.read(path)[-1]["samples_per_second"]) for path in logs)
    return first, last
