"""Checkpoints: all that a run needs to go on, in one safetensors file. Nothing is pickled.

Order, noise, times and class dropout follow from the seed and the step, so no random state is kept.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfkit.artifacts.artifact import Provenance, metadata, open_artifact
from mfkit.artifacts.atomic import atomic_write
from mfkit.artifacts.json_files import parse
from mfkit.artifacts.network_weights import shapes_of
from mfkit.artifacts.safetensors_files import read_tensors, write_tensors
from mfkit.errors import InputError, UsageError
from mfkit.runtime.distributed import full_tensor, processes, shard_like
from mfkit.setting import differences
from mfkit.training.train_state import TrainState

_KIND = "checkpoint"

TrainStates = Mapping[str, TrainState]
"""The networks in training, by what stands before the names of their tensors: nothing for the first."""


@dataclass(frozen=True)
class _Description:
    step: int
    settings: dict[str, Any]


def checkpoints(output: Path, *, partial: bool = False) -> list[Path]:
    """The checkpoints of the run that makes ``output``, the newest last.

    :param partial: instead of them, what was left of one whose writing was cut off.
    """
    whole = re.escape(output.stem) + r"\.checkpoint-(\d+)\.safetensors"
    name = re.compile(rf"\.{whole}\.partial" if partial else whole)
    found = [(match, path) for path in output.parent.glob("*") if (match := name.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda item: int(item[0][1]))]


def remove_checkpoints(output: Path) -> None:
    """Removes the checkpoints of a run, and what was left of one whose writing was cut off."""
    for path in checkpoints(output) + checkpoints(output, partial=True):
        path.unlink(missing_ok=True)


def save(
    output: Path, step: int, settings: dict[str, Any], trained: TrainStates, state: Mapping[str, Tensor], *,
    keep: int = 1,
) -> None:  # fmt: skip
    """Writes trainable parameters, their EMA and the optimisers' state after ``step`` steps.

    All processes call it; the main one writes, and it alone has a tensor on the host, one at a time.

    :param state: what the loss keeps between steps.
    :param keep: how many checkpoints stay; older ones are removed once this one is whole.
    """
    tensors = _tensors(trained, state)
    if not processes().is_main_process:
        write_tensors(None, tensors, {}, full_tensor)
        return
    with atomic_write(output.with_suffix(f".checkpoint-{step:07d}.safetensors")) as partial:
        texts = metadata(_KIND, {"step": step, "settings": settings}, Provenance())
        write_tensors(partial, tensors, texts, full_tensor)
    for old in checkpoints(output)[:-keep] + checkpoints(output, partial=True):
        old.unlink(missing_ok=True)


def restore(path: Path, settings: dict[str, Any], trained: TrainStates, state: Mapping[str, Tensor]) -> int:
    """Loads a checkpoint in place and returns its step; refuses one of a run with other settings."""
    found = parse(_Description, open_artifact(path, kinds=(_KIND,)).config, path)
    if different := differences(found.settings, json.loads(json.dumps(settings))):
        raise UsageError(f"{path} was started with different settings ({different}); --restart removes it")
    places, tensors = _tensors(trained, state), read_tensors(path)
    if (own := shapes_of(places)) != (held := shapes_of(tensors)):
        odd = sorted(name for name in own.keys() | held.keys() if own.get(name) != held.get(name))
        raise InputError(f"{path} does not fit this network: {', '.join(odd[:5])}")
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(shard_like(tensors[name], place))
    return found.step


def _tensors(trained: TrainStates, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All that is kept, by its name in the file."""
    tensors = {f"state.{name}": value for name, value in state.items()}
    for prefix, train_state in trained.items():
        for name, value in train_state.parameters.items():
            kept = train_state.optimizers.state(value)
            tensors[f"{prefix}model.{name}"] = value.detach()
            tensors |= {f"{prefix}optimizer.{key}.{name}": one for key, one in kept.items()}
        for decay, average in train_state.averages.items():
            of = "ema" if decay == train_state.settings.ema[0] else f"ema-{decay}"
            tensors |= {f"{prefix}{of}.{name}": one for name, one in zip(train_state.parameters, average, strict=True)}
    return tensors
