"""Networks in safetensors files: one file holds the weights and all that it takes to build their network."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from mfkit.artifacts.artifact import Artifact, metadata, open_artifact
from mfkit.artifacts.atomic import whole_file
from mfkit.artifacts.safetensors_files import read_tensors, safetensors_header, save_tensors
from mfkit.artifacts.schema import check_vae
from mfkit.errors import InputError, using
from mfkit.formats import diffusers_folder
from mfkit.models.dit import AverageVelocityDiT, DiT, DiTConfig, VelocityDiT
from mfkit.runtime.distributed import gathered, processes

if TYPE_CHECKING:
    from mfkit.autoencoders.rae import RAE
    from mfkit.autoencoders.vae import VAE

Network = TypeVar("Network", bound=nn.Module)

KINDS = ("rae", "teacher", "student")
_OTHER_GRID = 1 << 26
"""Numbers that positions may have more than those of their file, when they are for a larger image."""


def load(path: str | Path) -> nn.Module:
    """The network in a file that mfkit wrote, ready to use: evaluation mode, float32, on the CPU.

    A teacher is called as ``net(z, t, y)`` and gives the velocity; a student as ``net(z, r, t, y)`` and gives the
    average velocity; an RAE has ``encode(images)`` and ``decode(latents)``.

    :raises InputError: the file is missing, damaged or of another kind.
    """
    artifact = open_artifact(Path(path), kinds=KINDS)
    sizes = artifact.config["network"]
    _check_sizes(sizes, artifact.path)
    with using(f"{path}: the network that it describes"):
        network = fitting(lambda: build(artifact.kind, sizes), _held(artifact.path), artifact.path)
    load_weights(network, read_tensors(artifact.path), artifact.path)
    return network.eval()


def fitting(make: Callable[[], Network], held: Mapping[str, tuple[int, ...]], path: Path) -> Network:
    """The network that ``make`` builds, once it is known to have the tensors of its file, so to be no larger.

    :param held: shapes by name.
    """
    with torch.device("meta"):
        _check_fit(shapes(make().state_dict()), held, path)
    return make()


def check_room(outline: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuses a network that is larger than its file but for its positions, which may be those of another grid.

    :param outline: the network on the device ``meta``.
    """
    numbers, held = (sum(value.numel() for value in part.values()) for part in (outline.state_dict(), tensors))
    if numbers > held + _OTHER_GRID:
        raise InputError(f"{path} does not hold its network: {held} numbers of {numbers}")


def _check_sizes(sizes: Mapping[str, Any], path: Path) -> None:
    """Refuses a description of a network that is larger than its file before anything is made of it."""
    held = _held(path)
    numbers = sum(prod(shape) for shape in held.values())
    given = {**sizes, **sizes.get("encoder", {})}
    for name, value in given.items():
        most = len(held) if name.endswith("depth") else numbers
        if isinstance(value, int) and value > most:
            raise InputError(f"{path} does not hold the network that it describes: its {name} is {value}")


def _held(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a file, by name."""
    header = safetensors_header(path)
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def load_rae(path: Path) -> "RAE":
    """:func:`load`, for a file that must hold an RAE."""
    from mfkit.autoencoders.rae import RAE

    open_artifact(path, kinds=("rae",))
    network = load(path)
    assert isinstance(network, RAE)
    return network


def load_autoencoder(artifact: Artifact, *, image_size: int | None = None, side: int | None = None) -> "RAE | VAE":
    """What turns images into latents and back: an RAE's file or, frozen, a diffusers VAE's folder.

    :param image_size: side of the images that a VAE is to take; or ``side``, that of its latents.
    """
    if artifact.kind == "rae":
        return load_rae(artifact.path)
    from mfkit.autoencoders.vae import VAE, build_vae, current_name

    config, file = diffusers_folder.open_folder(artifact.path, diffusers_folder.VAE)
    with using(artifact.path):
        held = {current_name(name): shape for name, shape in _held(file).items()}
        check_vae(config, len(held), sum(prod(shape) for shape in held.values()), artifact.path)
        network = fitting(lambda: build_vae(config), held, file)
        load_weights(network, {current_name(name): value for name, value in read_tensors(file).items()}, file)
        return VAE(network, image_size=image_size, side=side)


def load_generator(path: Path, *kinds: str) -> DiT:
    """:func:`load`, for a file that must hold a generator of one of these kinds."""
    open_artifact(path, kinds=kinds)
    network = load(path)
    assert isinstance(network, DiT)
    return network


def build(kind: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of a kind with fresh weights, from the config of its file."""
    if kind == "rae":
        # timm and diffusers take seconds to import, and training on latents needs neither network.
        from mfkit.autoencoders.rae import RAE, RAEConfig

        return RAE(RAEConfig(**config))
    return (VelocityDiT if kind == "teacher" else AverageVelocityDiT)(DiTConfig(**config))


def save(path: Path, network: "DiT | RAE", kind: str, config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Writes a network of ``kind`` with its description; ``config`` are the entries beside the network's own.

    All processes call it; the main one writes.
    """
    tensors = {name: gathered(value.detach()).cpu().contiguous() for name, value in network.state_dict().items()}
    if not processes().is_main_process:
        return
    with whole_file(path) as partial:
        save_tensors(partial, tensors, metadata(kind, {"network": asdict(network.config), **config}, record))


def load_weights(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Loads strictly, and names the keys that do not fit."""
    _check_fit(shapes(network.state_dict()), shapes(tensors), path)
    with torch.no_grad():
        network.load_state_dict(tensors)


def _check_fit(own: Mapping[str, tuple[int, ...]], held: Mapping[str, tuple[int, ...]], path: Path) -> None:
    wrong = [f"missing {name}" for name in own if name not in held]
    wrong += [f"unexpected {name}" for name in held if name not in own]
    wrong += [f"{name} is {held[name]}, not {shape}" for name, shape in own.items() if held.get(name, shape) != shape]
    if wrong:
        raise InputError(f"{path} does not fit its network: {', '.join(wrong[:5])}" + (", …" if wrong[5:] else ""))
