"""The loader beside ``cat``: the same shards, read and collated, or copied to nowhere."""

import os
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mfkit.benchmark.rates import seconds
from mfkit.benchmark.request import BenchRequest
from mfkit.benchmark.synthetic import Synthetic
from mfkit.config import presets
from mfkit.config.settings import GeneratorSettings
from mfkit.data.latents import open_latents
from mfkit.data.loader import Layout, feed

_BATCHES = 32


def bench_loader(request: BenchRequest, inputs: Synthetic) -> dict[str, Any]:
    """Shuffled batches of latents by the workers of the preset; from the disk, and from the system's cache of it.

    From the cache, ``cat`` copies into a buffer that stays in the processor; a batch has to be written to memory.
    """
    cpu = torch.device("cpu")
    rows = request.batch_size or 64
    location = inputs.latents(_BATCHES * rows)
    (shard,) = Path(location).glob("*.tar")
    workers = presets.resolve(GeneratorSettings, "distill", request.preset, {}).workers

    def load() -> None:
        source = open_latents(location).source
        for _ in feed(source, Layout(rows, rows), first_step=0, last_step=_BATCHES, seed=0, workers=workers):
            pass

    def cat() -> None:
        subprocess.run(["cat", shard], stdout=subprocess.DEVNULL, check=True)

    size = shard.stat().st_size
    result: dict[str, Any] = {"stage": "loader", "batch_size": rows, "workers": workers, "bytes": size}
    for name in ("disk", "cache"):
        loaded: list[float] = []
        copied: list[float] = []
        for _ in range(request.rounds):
            for way, times in ((cat, copied), (load, loaded)):
                if name == "disk":
                    _forget(shard)
                times.append(seconds(way, cpu))
        result |= {
            f"{name}_bytes_per_second": size / median(loaded),
            f"{name}_images_per_second": _BATCHES * rows / median(loaded),
            f"{name}_cat_bytes_per_second": size / median(copied),
            f"{name}_share_of_cat": median(c / own for c, own in zip(copied, loaded, strict=True)),
        }
    return result


def _forget(path: Path) -> None:
    """Drops a file from the system's cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
