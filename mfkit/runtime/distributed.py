"""This process among others: how many there are, which is this one, on which device, what it holds of a tensor."""

import os
from functools import cache

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
    _share_cores()
    return state


@cache
def _share_cores() -> None:
    """Each of several processes on a machine takes its share of the cores: all of all would slow them tenfold.

    OMP_NUM_THREADS decides otherwise, but not torchrun's own setting of it to 1.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if local > 1 and ("OMP_NUM_THREADS" not in os.environ or by_torchrun):
        torch.set_num_threads(max(1, available_cores() // local))


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shutdown() -> None:
    """Leaves the group of processes, at the end of a command."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def full_tensor(value: Tensor) -> Tensor:
    """A parameter that FSDP has split among the processes, whole; any other tensor as it is. All processes call it."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def shard_like(whole: Tensor, value: Tensor) -> Tensor:
    """A whole tensor as ``value`` is kept: its device, and this process's part where FSDP has split it."""
    whole = whole.to(value.device)
    if not (hasattr(value, "device_mesh") and hasattr(value, "placements")):
        return whole
    from torch.distributed.tensor import distribute_tensor  # takes half a second to import

    return distribute_tensor(whole, value.device_mesh, value.placements)
