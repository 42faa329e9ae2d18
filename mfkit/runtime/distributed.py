"""This process among others: how many there are, which is this one, on which device, what it holds of a tensor."""

import os
import sys
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from mfkit.errors import UsageError


def processes() -> PartialState:
    """This process among those of a launcher (accelerate, torchrun), on its accelerator or, without one, on the CPU.

    :raises UsageError: a launcher started more processes than found each other.
    """
    on_cpu = not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    state = PartialState(cpu=on_cpu)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != launched:
        raise UsageError(f"the launcher started {launched} processes, but {state.num_processes} found each other")
    return state


def leave() -> None:
    """Takes leave of the other processes, at the end of a command."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def gathered(value: Tensor) -> Tensor:
    """A parameter that FSDP has split among the processes, whole; any other tensor as it is. All processes call it."""
    tensors = _split_tensors()
    return value.full_tensor() if tensors and isinstance(value, tensors.DTensor) else value


def placed_like(whole: Tensor, value: Tensor) -> Tensor:
    """A whole tensor as ``value`` is kept: its device, and this process's part where FSDP has split it."""
    tensors, whole = _split_tensors(), whole.to(value.device)
    if tensors and isinstance(value, tensors.DTensor):
        return tensors.distribute_tensor(whole, value.device_mesh, value.placements)
    return whole


def _split_tensors() -> Any:
    """torch's module of split tensors; None where there can be none, since it takes half a second to import."""
    return sys.modules.get("torch.distributed.tensor")
