"""The machine: how fast it multiplies matrices, how much memory was used at the most, what it is."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mfkit.config.settings import PrecisionName
from mfkit.runtime.distributed import processes
from mfkit.runtime.precision import autocast, matmul_precision

_SIDE = {"cpu": 1024, "cuda": 8192}
_SECONDS = 0.5
"""For which products are taken."""


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes, what it put on the device included."""
    _synchronize()
    begin = time.perf_counter()
    function()
    _synchronize()
    return time.perf_counter() - begin


def matmul_flops_per_second(precision: PrecisionName) -> float:
    """Operations a second of the product of two large square matrices, on this process's device."""
    device = processes().device
    side = _SIDE.get(device.type, 4096)
    a, b = torch.randn(2, side, side, device=device)
    with matmul_precision(precision, device), autocast(precision, device), torch.no_grad():
        if precision == "bf16":
            a, b = a.bfloat16(), b.bfloat16()
        once = min(seconds(lambda: a @ b) for _ in range(3))
        rounds = max(1, round(_SECONDS / once))
        taken = seconds(lambda: [a @ b for _ in range(rounds)])
    return 2 * side**3 * rounds / taken


def reset_peak_memory() -> None:
    """From here on :func:`peak_memory` counts."""
    if processes().device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif (file := Path("/proc/self/clear_refs")).exists():
        file.write_text("5")  # VmHWM becomes VmRSS


def peak_memory() -> int | None:
    """Bytes: of the GPU's memory, or resident of the process on a CPU; None where the system does not say it."""
    if processes().device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def machine() -> dict[str, Any]:
    """What was measured on."""
    world = processes()
    name = platform.processor() or platform.machine()
    if world.device.type == "cuda":
        name = torch.cuda.get_device_name()
    elif (info := Path("/proc/cpuinfo")).exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return {
        "device": name, "processes": world.num_processes, "threads": torch.get_num_threads(),
        "cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip


def _synchronize() -> None:
    if processes().device.type != "cpu":
        torch.accelerator.synchronize()
