"""The weights of a file into a network: compared in outline before it is built, loaded strictly; and written."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mfkit.artifacts.artifact import Provenance, metadata
from mfkit.artifacts.atomic import atomic_write
from mfkit.artifacts.safetensors_files import write_tensors
from mfkit.errors import InputError, decoding_errors
from mfkit.runtime.distributed import full_tensor, processes

Network = TypeVar("Network", bound=nn.Module)


def build_for(make: Callable[[], Network], shapes: Mapping[str, tuple[int, ...]], source: object) -> Network:
    """The network that ``make`` builds, once it is known to have the tensors of its file, and so to be no larger.

    :param shapes: of the file's tensors, by name.
    :raises InputError: it has others, or cannot be built.
    """
    with decoding_errors(source), torch.device("meta"):
        outline = make()
    _check_fit(shapes_of(outline.state_dict()), shapes, source)
    return make()


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Loads strictly, and names the tensors that do not fit."""
    _check_fit(shapes_of(network.state_dict()), shapes_of(tensors), source)
    with torch.no_grad():
        network.load_state_dict(dict(tensors))


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _check_fit(own: Mapping[str, tuple[int, ...]], held: Mapping[str, tuple[int, ...]], source: object) -> None:
    wrong = [f"missing {name}" for name in own if name not in held]
    wrong += [f"unexpected {name}" for name in held if name not in own]
    wrong += [f"{name} is {held[name]}, not {shape}" for name, shape in own.items() if held.get(name, shape) != shape]
    if wrong:
        raise InputError(f"{source} does not fit its network: {', '.join(wrong[:5])}" + (", …" if wrong[5:] else ""))


def save_network(
    path: Path, network: nn.Module, kind: str, network_config: Mapping[str, Any], config: Mapping[str, Any],
    provenance: Provenance,
) -> None:  # fmt: skip
    """Writes a network with its description. All processes call it; the main one writes.

    :param network_config: what it takes to build the network; ``config``: the other entries of the description.
    """
    texts = metadata(kind, {"network": dict(network_config), **config}, provenance)
    with atomic_write(path) if processes().is_main_process else nullcontext() as partial:
        write_tensors(partial, network.state_dict(), texts, full_tensor)
