"""This process among others: how many there are, which is this one, on which device, what it holds of a tensor."""

import os

import torch
from accelerate import PartialState
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

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
    return value.full_tensor() if isinstance(value, DTensor) else value


def placed_like(whole: Tensor, value: Tensor) -> Tensor:
    """A whole tensor as ``value`` is kept: its device, and this process's part where FSDP has split it."""
    whole = whole.to(value.device)
    return distribute_tensor(whole, value.device_mesh, value.placements) if isinstance(value, DTensor) else whole
