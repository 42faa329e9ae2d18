"""The one place that asks accelerate how many processes there are, which is this one, and on which device."""

import os

import torch
from accelerate import PartialState

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
