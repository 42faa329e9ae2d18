"""Checkpoints: all that a run needs to go on, in one safetensors file. Nothing is pickled.

Order, noise, times and label drops follow from the seed and the step, so no random state is kept.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from mfkit.artifacts.artifact import metadata, open_artifact
from mfkit.artifacts.atomic import whole_file
from mfkit.artifacts.safetensors_files import read_tensors, save_tensors
from mfkit.config.settings import differing
from mfkit.errors import MALFORMED, InputError, UsageError, reason
from mfkit.runtime.distributed import gathered, placed_like, processes
from mfkit.training.train_state import Optimisation

_KIND = "checkpoint"


def checkpoints(output: Path) -> list[Path]:
    """The checkpoints of the run that makes ``output``, the newest last."""
    return _of_run(output, r"\.safetensors")


def forget(output: Path) -> None:
    """Removes the checkpoints of a run, and what was left of one whose writing was cut off."""
    for path in checkpoints(output) + _of_run(output, r"\.safetensors\.partial", hidden=True):
        path.unlink(missing_ok=True)


def _of_run(output: Path, ending: str, *, hidden: bool = False) -> list[Path]:
    name = re.compile((r"\." if hidden else "") + re.escape(output.stem) + r"\.checkpoint-(\d+)" + ending)
    found = [(match, path) for path in output.parent.glob("*") if (match := name.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda item: int(item[0][1]))]


def save(output: Path, step: int, settings: dict[str, Any], optimisation: Optimisation, *, keep: int = 1) -> None:
    """Writes trainable parameters, their moving average and the optimiser's state after ``step`` steps.

    All processes call it; the main one writes.

    :param keep: how many checkpoints stay; older ones are removed once this one is whole.
    """
    parameters, optimizer = optimisation.parameters, optimisation.optimizer
    tensors = {f"model.{name}": value.detach() for name, value in parameters.items()}
    tensors |= {f"ema.{name}": value for name, value in zip(parameters, optimisation.average, strict=True)}
    for name, value in parameters.items():
        tensors |= {f"optimizer.{key}.{name}": state for key, state in optimizer.state[value].items()}
    tensors = {name: gathered(value).cpu().contiguous() for name, value in tensors.items()}
    if not processes().is_main_process:
        return
    with whole_file(output.with_suffix(f".checkpoint-{step:07d}.safetensors")) as partial:
        save_tensors(partial, tensors, metadata(_KIND, {"step": step, "settings": settings}, {}))
    for old in checkpoints(output)[:-keep] + _of_run(output, r"\.safetensors\.partial", hidden=True):
        old.unlink(missing_ok=True)


def restore(path: Path, settings: dict[str, Any], optimisation: Optimisation) -> int:
    """Loads a checkpoint in place and returns its step; refuses one of a run with other settings."""
    config = open_artifact(path, kinds=(_KIND,)).config
    if different := differing(config["settings"], json.loads(json.dumps(settings))):
        raise UsageError(f"{path} is of a run with other settings ({different}); --restart starts anew and removes it")
    tensors = read_tensors(path)
    try:
        with torch.no_grad():
            for (name, value), average in zip(optimisation.parameters.items(), optimisation.average, strict=True):
                value.copy_(placed_like(tensors[f"model.{name}"], value))
                average.copy_(placed_like(tensors[f"ema.{name}"], value))
                optimisation.optimizer.state[value] = {
                    key: placed_like(tensors[f"optimizer.{key}.{name}"], value) for key in ("exp_avg", "exp_avg_sq")
                } | {"step": tensors[f"optimizer.step.{name}"].to(value.device)}
    except MALFORMED as error:
        raise InputError(f"{path} does not fit this network: {reason(error)}") from error
    return config["step"]
