"""Inputs of the right shapes, on disk, for the real stages to be timed on: latents, trajectories, images, networks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mfkit.artifacts.artifact import Artifact, open_artifact
from mfkit.autoencoders import weights
from mfkit.autoencoders.rae import RAE, RAEConfig
from mfkit.config.presets import GENERATOR_SIZES, LATENTS
from mfkit.config.settings import ModelName, PresetName
from mfkit.data.codecs import array_bytes, png_bytes
from mfkit.data.shards import write_index, write_shard
from mfkit.flow.times import time_grid, time_shift
from mfkit.models.dit import AverageVelocityDiT, DiTConfig, VelocityDiT
from mfkit.runtime.distributed import processes

_RECORD: dict[str, Any] = {"inputs": {}, "history": {}}
_DIFFERENT = 32
"""Rows that differ; further ones repeat them."""


@dataclass(frozen=True)
class Synthetic:
    """A folder of inputs for a preset's stages."""

    folder: Path
    preset: PresetName
    model: ModelName
    side: int
    """Of the latents."""

    @property
    def network(self) -> DiTConfig:
        return DiTConfig(**LATENTS[self.preset] | {"side": self.side}, **GENERATOR_SIZES[self.model])

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.network.channels, self.side, self.side)

    def latents(self, rows: int) -> str:
        """Shards of standard normal latents, float16."""
        values = _normal(self.shape, min(rows, _DIFFERENT))
        samples = (_row(i, {"latent": values[i % len(values)]}, self.network.classes) for i in range(rows))
        return self._shards("latents", samples)

    def trajectories(self, rows: int, steps: int) -> str:
        """Shards of straight trajectories between normal latents, float16, with the times of the shifted grid."""
        times = time_grid(steps, time_shift(*self.shape)).numpy()
        ends = _normal(self.shape, 2 * min(rows, _DIFFERENT)).astype(np.float32)
        mixed = times[:, None, None, None]
        values = [((1 - mixed) * x + mixed * e).astype(np.float16) for x, e in zip(ends[::2], ends[1::2], strict=True)]
        columns = ({"states": values[i % len(values)], "times": times} for i in range(rows))
        return self._shards("trajectories", (_row(i, arrays, self.network.classes) for i, arrays in enumerate(columns)))

    def images(self, count: int, size: int) -> str:
        """A shard of smooth random pictures, PNG, of ``size`` pixels."""
        folder = self.folder / f"images-{count}"
        coarse = torch.rand(min(count, _DIFFERENT), 3, 8, 8, generator=torch.Generator().manual_seed(0))
        smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
        files = [png_bytes(image) for image in smooth.mul(255).to(torch.uint8)]
        members = ({"__key__": f"{i:09d}", "png": files[i % len(files)], "cls": b"0"} for i in range(count))
        if processes().is_main_process:
            write_shard(folder / "00000.tar", members)
        processes().wait_for_everyone()
        return str(folder / "*.tar")

    def generator(self, kind: str) -> Artifact:
        """A teacher's or student's file, with weights that let every part work."""
        path = self.folder / f"{kind}.safetensors"
        if processes().is_main_process and not path.exists():
            network = (VelocityDiT if kind == "teacher" else AverageVelocityDiT)(self.network)
            for parameter in network.parameters():
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.02)
            names = [str(label) for label in range(self.network.classes)]
            config = {"time_shift": time_shift(*self.shape), "classes": names, "preset": self.preset}
            weights.save(path, network, kind, config, _RECORD)
        processes().wait_for_everyone()
        return open_artifact(path)

    def autoencoder(self, config: RAEConfig) -> Artifact:
        """An RAE's file with random weights."""
        path = self.folder / "rae.safetensors"
        if processes().is_main_process and not path.exists():
            weights.save(path, RAE(config), "rae", {"preset": self.preset}, _RECORD)
        processes().wait_for_everyone()
        return open_artifact(path)

    def _shards(self, kind: str, samples: Iterator[dict[str, Any]]) -> str:
        folder = self.folder / kind
        names = [str(label) for label in range(self.network.classes)]
        config = {"shape": list(self.shape), "classes": names, "preset": self.preset}
        if processes().is_main_process:
            write_index(folder, kind, config, _RECORD, [write_shard(folder / "00000.tar", samples)])
        processes().wait_for_everyone()
        return str(folder)


def _normal(shape: tuple[int, ...], count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *shape), np.float32).astype(np.float16)


def _row(number: int, arrays: dict[str, np.ndarray], classes: int) -> dict[str, Any]:
    members = {f"{name}.npy": array_bytes(value) for name, value in arrays.items()}
    return {"__key__": f"{number:09d}", **members, "cls": str(number % classes).encode()}
