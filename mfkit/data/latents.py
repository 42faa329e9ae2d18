"""The inputs of the stages: named by the user, or found where an earlier file recorded them; checked to fit."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mfkit.artifacts.artifact import Artifact
from mfkit.config.presets import GENERATOR_SIZES
from mfkit.config.settings import ModelName, OnBad
from mfkit.data.codecs import array_member, broken, label_member
from mfkit.data.indexed import Decode
from mfkit.data.loader import Source
from mfkit.data.stream import ShardFolder, ShardStream, open_shards
from mfkit.errors import InputError, UsageError
from mfkit.models.dit import DiTConfig

AUTOENCODERS = ("rae", "vae")
"""Kinds of what turns images into latents and back."""


@dataclass(frozen=True)
class LatentSet:
    """Latents or trajectories to train on, and what they say of themselves."""

    source: Source
    shape: tuple[int, ...]
    """(C, H, W) of a latent."""
    classes: list[str]
    """Names of the classes, in the order of their indices."""

    @property
    def artifact(self) -> Artifact:
        return self.source.artifact


def open_latents(location: str, *, classes: int | None = None, on_bad: OnBad = "error") -> LatentSet:
    """Rows ``latent`` (C, H, W), standardised, in the number format they are stored in, and ``label``.

    :param classes: number of classes, needed only for foreign shards, which do not say it.
    """
    return _open(location, "latents", _latent, classes, on_bad)


def open_trajectories(location: str, *, classes: int | None = None, on_bad: OnBad = "error") -> LatentSet:
    """Rows ``states`` (S + 1, C, H, W) as they are stored, ``times`` (S + 1,) descending, and ``label``."""
    return _open(location, "trajectories", _trajectory, classes, on_bad)


def follow(given: str | Path | None, parent: Artifact, role: str, option: str) -> str:
    """The location of an input: the one given, else the one that ``parent`` recorded."""
    return str(given) if given is not None else str(parent.recorded(role, option).path)


def fresh_config(latents: LatentSet, model: ModelName) -> DiTConfig:
    """The sizes of a new generator for these latents."""
    channels, side, _ = latents.shape
    return DiTConfig(channels=channels, side=side, classes=len(latents.classes), **GENERATOR_SIZES[model])


def latent_shape(generator: Artifact) -> tuple[int, ...]:
    """(C, H, W) of the latents that a generator makes."""
    network = generator.config["network"]
    return (network["channels"], network["side"], network["side"])


def check_fit(latents: LatentSet, generator: Artifact) -> None:
    """Refuses latents or trajectories that a generator was not made for."""
    name, wanted = latents.artifact.path, latent_shape(generator)
    if latents.shape != wanted:
        raise InputError(f"{name} holds latents {latents.shape}; {generator.path} is for {wanted}")
    if len(latents.classes) > generator.config["network"]["classes"]:
        known = generator.config["network"]["classes"]
        raise InputError(f"{name} has {len(latents.classes)} classes; {generator.path} knows {known}")
    check_same_rae(latents.artifact, generator)


def check_decodes(autoencoder: Artifact, shape: tuple[int, ...], generator: Path) -> None:
    """Refuses an RAE or VAE whose latents are not those that a generator makes.

    :param shape: (C, H, W) of the generator's latents.
    """
    if autoencoder.kind == "rae":
        network = autoencoder.config["network"]
        fits, held = (
            network["channels"] == shape[0] and network["side"] == shape[1],
            (f"{network['channels']} x {network['side']} x {network['side']}"),
        )
    else:
        channels = autoencoder.config.get("latent_channels")
        fits, held = channels == shape[0], f"{channels} channels"
    if not fits:
        raise InputError(f"{generator} makes latents of {' x '.join(map(str, shape))}; {autoencoder.path} has {held}")


def check_same_rae(one: Artifact, other: Artifact) -> None:
    """Refuses two files that descend from different RAEs or VAEs; one that does not say its own passes."""
    raes = one.lineage(*AUTOENCODERS), other.lineage(*AUTOENCODERS)
    if all(raes) and not raes[0] & raes[1]:
        raise InputError(f"{one.path} and {other.path} come from two different RAEs; their latents do not mix")


def _open(location: str, kind: str, decode: Decode, classes: int | None, on_bad: OnBad) -> LatentSet:
    source = open_shards(location, kind, decode, on_bad)
    config = source.artifact.config
    if "shape" in config:
        names = list(config["classes"])
    elif classes:
        names = [str(label) for label in range(classes)]
    else:
        raise UsageError(f"{location} does not say how many classes it has; give --classes")
    shape = tuple(config["shape"]) if "shape" in config else _first_shape(source)
    source.decode = partial(_checked, decode=decode, shape=shape, classes=len(names))
    source.classes = len(names)
    return LatentSet(source, shape, names)


def _first_shape(source: ShardFolder | ShardStream) -> tuple[int, ...]:
    """(C, H, W) of the first sample of foreign shards."""
    row = source[0] if isinstance(source, ShardFolder) else source.peek()
    return tuple(row["latent"].shape if "latent" in row else row["states"].shape[1:])


def _checked(sample: dict[str, Any], decode: Decode, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    row = decode(sample)
    if row["label"] >= classes:
        raise broken(sample, f"label {row['label']} is outside the {classes} classes")
    found = tuple(row["latent"].shape if "latent" in row else row["states"].shape[1:])
    if found != shape:
        raise broken(sample, f"a latent of shape {found}, not {shape}")
    return row


def _latent(sample: dict[str, Any]) -> dict[str, Any]:
    return {"latent": array_member(sample, "latent.npy"), "label": label_member(sample)}


def _trajectory(sample: dict[str, Any]) -> dict[str, Any]:
    states, times = array_member(sample, "states.npy"), array_member(sample, "times.npy")
    if states.ndim != 4 or times.ndim != 1 or len(states) != len(times) or len(times) < 2:
        raise broken(sample, f"states {tuple(states.shape)} do not fit times {tuple(times.shape)}")
    return {"states": states, "times": times, "label": label_member(sample)}
