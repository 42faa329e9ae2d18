"""All benchmarks by name."""

import platform
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate.utils import broadcast_object_list

from mfkit.artifacts.artifact import library_versions
from mfkit.benchmark.derivative import bench_derivative
from mfkit.benchmark.production import bench_encode, bench_sample, bench_trajectories
from mfkit.benchmark.reading import bench_loader
from mfkit.benchmark.request import BenchRequest
from mfkit.benchmark.synthetic import Synthetic
from mfkit.benchmark.training import bench_training
from mfkit.config.presets import LATENTS
from mfkit.errors import UsageError
from mfkit.evaluation.cost import TrainedStage
from mfkit.runtime.distributed import processes

BENCHMARKS: dict[str, Callable[[BenchRequest, Synthetic], dict[str, Any]]] = {
    "encode": bench_encode,
    **{stage: partial(bench_training, stage) for stage in get_args(TrainedStage)},
    "trajectories": bench_trajectories,
    "sample": bench_sample,
    "loader": bench_loader,
    "derivative": bench_derivative,
}
_EXECUTION = {"compile": False, "activation_checkpointing": False, "plain": True}
_UNREAD: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("encode", "trajectories", "sample"), _EXECUTION),
    **dict.fromkeys(("loader", "derivative"), _EXECUTION | {"precision": "float32"}),
}
"""Options that a benchmark does not read, with the values they have when they are not given."""


def bench_all(request: BenchRequest, tokens: int | None) -> dict[str, dict[str, Any]]:
    """Every stage by name, each with the options that it reads."""
    return {name: bench(name, replace(request, **_UNREAD.get(name, {})), tokens) for name in BENCHMARKS}


def bench(stage: str, request: BenchRequest, tokens: int | None) -> dict[str, Any]:
    """What a stage takes on this machine, on random inputs of the preset's shapes.

    :param tokens: tokens of a latent, a square number; None for the preset's.
    """
    if stage not in BENCHMARKS:
        raise UsageError(f"bench {stage}: give {', '.join(BENCHMARKS)} or all")
    for option, default in _UNREAD.get(stage, {}).items():
        if getattr(request, option) != default:
            raise UsageError(f"bench {stage} has no --{option.replace('_', '-')}")
    state = processes()
    if state.num_processes > 1 and stage not in get_args(TrainedStage):
        raise UsageError(f"bench {stage} runs in one process; the training stages in any number")
    side = round(tokens**0.5) if tokens else LATENTS[request.preset]["side"]
    if tokens and side * side != tokens:
        raise UsageError(f"--tokens {tokens} is no square number")
    with tempfile.TemporaryDirectory(prefix="mfkit-bench-") as own:
        (folder,) = broadcast_object_list([own])
        inputs = Synthetic(Path(folder), request.preset, request.model, side)
        measured = BENCHMARKS[stage](request, inputs)
        state.wait_for_everyone()
    return measured | {
        "preset": request.preset, "model": request.model, "tokens": side * side, "precision": request.precision,
        "compile": request.compile, "activation_checkpointing": request.activation_checkpointing,
        "rounds": request.rounds, "machine": _machine(),
    }  # fmt: skip


def _machine() -> dict[str, Any]:
    device = processes().device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"device": name, "threads": torch.get_num_threads(), **library_versions()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return found or platform.processor() or platform.machine()
