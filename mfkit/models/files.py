"""Generators in files: opened once, with all that it takes to build their network."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from mfkit.artifacts.artifact import Artifact, Provenance, open_artifact
from mfkit.artifacts.json_files import parse
from mfkit.artifacts.network_weights import build_for, load_weights, save_network
from mfkit.artifacts.pipeline_folder import PREFIX, WEIGHTS, component
from mfkit.artifacts.safetensors_files import read_tensors
from mfkit.config.presets import PresetName
from mfkit.errors import InputError
from mfkit.models.architectures import ARCHITECTURES
from mfkit.models.generator import Architecture, Generator, GeneratorKind

T = TypeVar("T")
KINDS: tuple[GeneratorKind, ...] = ("teacher", "student")


@dataclass(frozen=True, kw_only=True)
class GeneratorDescription:
    """What a generator's file says beside its weights."""

    network: dict[str, Any]
    """Name of the architecture, and the fields of its config."""
    time_shift: float
    class_names: list[str]
    """In the order of their indices."""
    preset: PresetName | None = None
    class_dropout: float | None = None
    """Share of samples that it was trained on without their label; None where that is not known."""
    trained_spaces: list[dict[str, Any]] = field(default_factory=list)
    """Feature spaces whose distance it, or one that it descends from, was trained by: no evidence of its quality."""


@dataclass(frozen=True)
class GeneratorFile:
    """An opened teacher or student."""

    artifact: Artifact
    description: GeneratorDescription
    architecture: Architecture
    network_config: Any

    @property
    def path(self) -> Path:
        return self.artifact.path

    @property
    def kind(self) -> GeneratorKind:
        return "teacher" if self.artifact.kind == "teacher" else "student"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.network_config.latent_shape

    @property
    def num_classes(self) -> int:
        return self.network_config.num_classes

    @cached_property
    def network(self) -> Generator:
        """The network with its weights, read once: evaluation mode, float32, on the CPU."""
        assert self.artifact.header is not None
        shapes = _own_names(self.artifact.header.shapes)
        network = build_for(lambda: self.architecture.build(self.kind, self.network_config), shapes, self.path)
        load_weights(network, _own_names(read_tensors(self.path)), self.path)
        return network.eval()


def open_generator(path: Path, *kinds: GeneratorKind) -> GeneratorFile:
    """Opens a teacher's or student's file, or a pipeline's folder; its weights are read when they are asked for.

    :param kinds: those wanted; any generator by default.
    :raises InputError: the file is missing, damaged or of another kind.
    """
    folder = component(path, "transformer")
    path = folder / WEIGHTS if folder else path
    artifact = open_artifact(path, kinds=kinds or KINDS)
    description = parse(GeneratorDescription, artifact.config, path)
    name = description.network.get("architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InputError(f"{path} has a network of architecture {name}; known: {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    fields = {field: value for field, value in description.network.items() if field != "architecture"}
    config = parse(architecture.config, fields, path)
    if len(description.class_names) != config.num_classes:
        names = len(description.class_names)
        raise InputError(f"{path} is damaged: it names {names} classes, its network has {config.num_classes}")
    return GeneratorFile(artifact, description, architecture, config)


def _own_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """Without what a pipeline's component puts before them."""
    of_pipeline = all(name.startswith(PREFIX) for name in tensors)
    return {name.removeprefix(PREFIX) if of_pipeline else name: value for name, value in tensors.items()}


def save_generator(
    path: Path, network: Generator, architecture: str, config: dict[str, Any], provenance: Provenance
) -> None:
    """Writes a generator. All processes call it; the main one writes.

    :param config: the entries of :class:`GeneratorDescription` beside ``network``.
    """
    network_config = {"architecture": architecture, **asdict(network.config)}
    save_network(path, network, network.kind, network_config, config, provenance)
