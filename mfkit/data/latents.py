"""Latents and trajectories to train on: opened, and checked to be what a generator was made for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from mfkit.artifacts.artifact import Artifact
from mfkit.artifacts.json_files import parse_known
from mfkit.config.presets import PresetName
from mfkit.config.settings import DEFAULT_READING, Reading
from mfkit.data.codecs import array_member, label_member, unreadable
from mfkit.data.dataset import Decode, IndexedTars, read_batch
from mfkit.data.loader import Dataset
from mfkit.data.shards import open_shards
from mfkit.data.stream import StreamDataset
from mfkit.errors import InputError, UsageError
from mfkit.flow.objectives.base import DataKind
from mfkit.models.files import GeneratorFile

MIRRORED = "-mirrored"
"""What the key of a mirror image's latents has after that of the image."""


@dataclass(frozen=True)
class LatentDataset:
    """Latents or trajectories, and what they say of themselves."""

    dataset: Dataset
    shape: tuple[int, ...]
    """(C, H, W) of a latent."""
    class_names: list[str]
    """In the order of their indices."""
    preset: PresetName | None

    @property
    def artifact(self) -> Artifact:
        return self.dataset.artifact


@dataclass(frozen=True)
class _Description:
    """What the description of latents or trajectories must say, of all that it says; foreign ones say nothing."""

    shape: tuple[int, int, int] | None = None
    class_names: list[str] = field(default_factory=list)
    preset: PresetName | None = None


def open_latents(
    kind: DataKind, location: str, *, classes: int | None = None, reading: Reading = DEFAULT_READING
) -> LatentDataset:
    """Samples of a kind, in the number format they are stored in, and their ``label``.

    :param classes: number of classes, needed only for foreign shards, which do not say it.
    """
    return _open((kind,), *_KINDS[kind], location, classes, reading)


def open_decodable(location: str, *, classes: int | None = None, reading: Reading = DEFAULT_READING) -> LatentDataset:
    """Latents, or the ends of trajectories, as ``latent``."""
    return _open(("latents", "trajectories"), _decode_last, ("latent",), location, classes, reading)


def _open(
    kinds: tuple[str, ...], decode: Decode, arrays: tuple[str, ...], location: str, classes: int | None,
    reading: Reading,
) -> LatentDataset:  # fmt: skip
    dataset = open_shards(location, kinds, decode, reading, arrays=arrays)
    found = parse_known(_Description, dataset.artifact.config, location)
    class_names = found.class_names or [str(label) for label in range(classes or 0)]
    if not class_names:
        raise UsageError(f"{location} does not say how many classes it has; pass --classes")
    shape = found.shape or _first_shape(dataset)
    dataset.decode = partial(_checked, decode=decode, shape=shape, num_classes=len(class_names))
    if isinstance(dataset, IndexedTars):
        _check_index(dataset, shape, len(class_names))
    return LatentDataset(dataset, shape, class_names, found.preset)


def check_fit(data: LatentDataset, generator: GeneratorFile) -> None:
    """Refuses latents or trajectories that a generator was not made for."""
    location = data.artifact.path
    if data.shape != generator.latent_shape:
        raise InputError(f"{location} holds latents {data.shape}; {generator.path} is for {generator.latent_shape}")
    if len(data.class_names) > generator.num_classes:
        raise InputError(
            f"{location} has {len(data.class_names)} classes; {generator.path} knows {generator.num_classes}"
        )
    check_same_autoencoder(data.artifact, generator.artifact)


def check_trajectories(data: LatentDataset, teacher: GeneratorFile) -> None:
    """Refuses trajectories of another teacher."""
    solved = data.artifact.inputs.get("teacher")
    if solved and solved.digest != teacher.artifact.digest:
        raise InputError(f"{data.artifact.path} was not solved by {teacher.path}, but by another teacher")


def check_same_autoencoder(one: Artifact, other: Artifact) -> None:
    """Refuses two files whose latents are of different autoencoders; one that does not say its own passes."""
    found = one.ancestors("rae"), other.ancestors("rae")
    if all(found) and not found[0] & found[1]:
        raise InputError(f"{one.path} and {other.path} come from two different autoencoders; their latents do not mix")


def recorded_latents(artifact: Artifact, given: str | None) -> str:
    """The location of a generator's latents: the one given, else the recorded one."""
    return given if given is not None else str(artifact.input_path("latents", "--latents"))


def check_recorded(artifact: Artifact, data: LatentDataset, given: str | None) -> None:
    """Refuses latents at the recorded place that are no longer what a generator was trained on."""
    if given is None:
        artifact.check_input("latents", data.artifact, "--latents")


def _shape(sample: Mapping[str, Tensor]) -> tuple[int, ...]:
    """(C, H, W) of a sample's latents."""
    return tuple(sample["latent"].shape if "latent" in sample else sample["states"].shape[1:])


def _first_shape(dataset: IndexedTars | StreamDataset) -> tuple[int, ...]:
    """(C, H, W) of the first sample of foreign shards that can be read."""
    if isinstance(dataset, StreamDataset):
        return _shape(dataset.peek())
    return _shape({name: column[0] for name, column in read_batch(dataset, [0]).items()})


def _check_index(dataset: IndexedTars, shape: tuple[int, ...], num_classes: int) -> None:
    """Refuses an index of arrays that do not fit; a sample with a wrong label is refused when it is read."""
    index, layouts = dataset.index, dataset.index.layouts
    index.label[index.label >= num_classes] = -1  # so that it is decoded
    states = layouts["states"].shape if "states" in layouts else [0, *shape]
    for name, expected in (("latent", [*shape]), ("states", [*states[:1], *shape]), ("times", states[:1])):
        if name in layouts and (found := layouts[name].shape) != expected:
            raise InputError(f"{dataset.artifact.path} holds {name} of shape {tuple(found)}, not {tuple(expected)}")
    if states[:1] == [1]:
        raise InputError(f"{dataset.artifact.path} holds trajectories of a single state")
    for name, offsets in index.offsets.items():
        inside = offsets + layouts[name].nbytes <= index.end
        if not np.all(inside | (offsets < 0)):
            raise InputError(f"{dataset.artifact.path} is damaged: its index has a {name} beyond its sample")


def _checked(sample: dict[str, Any], decode: Decode, shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
    decoded = decode(sample)
    if decoded["label"] >= num_classes:
        raise unreadable(sample, f"label {decoded['label']} is outside the {num_classes} classes")
    if (found := _shape(decoded)) != shape:
        raise unreadable(sample, f"a latent of shape {found}, not {shape}")
    return decoded


def _decode_latent(sample: dict[str, Any]) -> dict[str, Any]:
    return {"latent": array_member(sample, "latent.npy"), "label": label_member(sample)}


def _decode_trajectory(sample: dict[str, Any]) -> dict[str, Any]:
    states, times = array_member(sample, "states.npy"), array_member(sample, "times.npy")
    if states.ndim != 4 or times.ndim != 1 or len(states) != len(times) or len(times) < 2:
        raise unreadable(sample, f"states {tuple(states.shape)} do not fit times {tuple(times.shape)}")
    return {"states": states, "times": times, "label": label_member(sample)}


def _decode_last(sample: dict[str, Any]) -> dict[str, Any]:
    if "latent.npy" in sample:
        return _decode_latent(sample)
    found = _decode_trajectory(sample)
    return {"latent": found["states"][-1], "label": found["label"]}


_KINDS: dict[DataKind, tuple[Decode, tuple[str, ...]]] = {
    "latents": (_decode_latent, ("latent",)),
    "trajectories": (_decode_trajectory, ("states", "times")),
}
"""How a sample of a kind is decoded, and the arrays that it holds."""
