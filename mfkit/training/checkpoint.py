"""Checkpoints: all that a run needs to go on, in one safetensors file. Nothing is pickled.

Order, noise, times and label drops follow from the seed and the step, so no random state is kept.
"""

import json
from pathlib import Path
from typing import Any

import torch

from mfkit.errors import InputError, UsageError
from mfkit.files.artifact import metadata, open_artifact
from mfkit.files.atomic import whole_file
from mfkit.files.weights import read_tensors, save_tensors
from mfkit.processes import gathered, placed_like, processes
from mfkit.training.optimisation import Optimisation

_KIND = "checkpoint"


def checkpoint_path(output: Path) -> Path:
    return output.with_suffix(".checkpoint.safetensors")


def save(path: Path, step: int, settings: dict[str, Any], optimisation: Optimisation) -> None:
    """Writes trainable parameters, their moving average and the optimiser's state after ``step`` steps.

    All processes call it; the main one writes.
    """
    parameters, optimizer = optimisation.parameters, optimisation.optimizer
    tensors = {f"model.{name}": value.detach() for name, value in parameters.items()}
    tensors |= {f"ema.{name}": value for name, value in zip(parameters, optimisation.average, strict=True)}
    for name, value in parameters.items():
        tensors |= {f"optimizer.{key}.{name}": state for key, state in optimizer.state[value].items()}
    tensors = {name: gathered(value).cpu().contiguous() for name, value in tensors.items()}
    if not processes().is_main_process:
        return
    with whole_file(path) as partial:
        save_tensors(partial, tensors, metadata(_KIND, {"step": step, "settings": settings}, {}))


def restore(path: Path, settings: dict[str, Any], optimisation: Optimisation) -> int:
    """Loads a checkpoint in place and returns its step; refuses one of a run with other settings."""
    config = open_artifact(path, kinds=(_KIND,)).config
    settings = json.loads(json.dumps(settings))
    different = sorted(
        f"{name} {config['settings'].get(name)} there, {settings.get(name)} here"
        for name in settings.keys() | config["settings"].keys()
        if config["settings"].get(name) != settings.get(name)
    )
    if different:
        raise UsageError(
            f"{path} is of a run with other settings ({'; '.join(different)}); --restart starts anew and removes it"
        )
    tensors = read_tensors(path)
    try:
        with torch.no_grad():
            for (name, value), average in zip(optimisation.parameters.items(), optimisation.average, strict=True):
                value.copy_(placed_like(tensors[f"model.{name}"], value))
                average.copy_(placed_like(tensors[f"ema.{name}"], value))
                optimisation.optimizer.state[value] = {
                    key: placed_like(tensors[f"optimizer.{key}.{name}"], value) for key in ("exp_avg", "exp_avg_sq")
                } | {"step": tensors[f"optimizer.step.{name}"].to(value.device)}
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{path} does not fit this network: {error}") from error
    return config["step"]
