"""One stage measured, or all of them."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from mfkit.benchmark.inference import measure_files, measure_loader
from mfkit.benchmark.machine import machine, matmul_flops_per_second, peak_memory, reset_peak_memory
from mfkit.benchmark.networks import Networks
from mfkit.benchmark.settings import STAGES, TRAININGS, BenchSettings
from mfkit.benchmark.training import measure_training
from mfkit.errors import UsageError
from mfkit.flow.objectives import OBJECTIVES, objectives_of


def bench(stage: str, settings: BenchSettings) -> Iterator[dict[str, Any]]:
    """The figures of a stage, or of each where it is ``all``."""
    if stage not in (*STAGES, "all"):
        raise UsageError(f"there is no stage {stage}; choose from {', '.join(STAGES)}, all")
    if stage not in TRAININGS:
        given = [
            name for name in ("objective", "late_r", "compile", "activation_checkpointing") if getattr(settings, name)
        ]
        by_latents = settings.objective and OBJECTIVES[settings.objective].reads == "latents"
        of_loader = stage == "loader" and by_latents and given == ["objective"]
        if given and not of_loader and (stage != "all" or "objective" in given):
            raise UsageError(f"--{given[0].replace('_', '-')} is of a training stage; name one")
    elif settings.objective and settings.objective not in objectives_of(stage):
        raise UsageError(f"--objective {settings.objective} is not of {stage}")
    elif settings.late_r and stage == "train-teacher":
        raise UsageError("--late-r is of a student; train-teacher has none")
    networks = Networks.of(settings)
    device = matmul_flops_per_second(settings.precision)
    for name in STAGES if stage == "all" else [stage]:
        reset_peak_memory()
        if name in TRAININGS:
            measured = measure_training(name, networks)
        else:
            measured = measure_loader(networks) if name == "loader" else measure_files(name, networks)
        figures = {"stage": name, **measured, "peak_bytes": peak_memory()}
        if rate := figures.get("flops_per_second"):
            figures |= {"matmul_flops_per_second": device, "share_of_matmul": rate / device}
        yield figures | {
            "preset": settings.preset, "network": asdict(networks.config), "batch_size": networks.rows,
            "precision": settings.precision, "machine": machine(),
        }  # fmt: skip
