"""Networks with random weights, latents and images, of a preset's sizes or others: what the stages are measured on."""

from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch

from mfkit.artifacts.artifact import Provenance
from mfkit.autoencoders.rae import RAE, RAEConfig, RAEFile, rae_outline, save_rae
from mfkit.benchmark.settings import BenchSettings
from mfkit.config.presets import PRESETS
from mfkit.errors import UsageError
from mfkit.evaluation.cost import preset_rae
from mfkit.evaluation.flops import decoder_flops, encoder_flops, generator_flops
from mfkit.flow.times import default_time_shift
from mfkit.models.architectures import architecture_of
from mfkit.models.files import GeneratorFile, open_generator, save_generator
from mfkit.models.generator import Architecture, Generator, GeneratorKind
from mfkit.runtime.distributed import processes
from mfkit.training.generator import with_late_r


@dataclass(frozen=True)
class Networks:
    """What a stage runs."""

    architecture: Architecture
    config: Any
    rae: RAEConfig
    settings: BenchSettings

    @classmethod
    def of(cls, settings: BenchSettings) -> "Networks":
        recipe, rae = PRESETS[settings.preset], preset_rae(settings.preset)
        side = isqrt(settings.tokens) if settings.tokens else rae.side
        if settings.tokens not in (None, side**2):
            raise UsageError(f"--tokens {settings.tokens}: latents are square; give a square number")
        scaled = {name: getattr(rae, name) // rae.side * side for name in ("image_size", "encoder_size")}
        architecture, size = architecture_of(settings.model or recipe.model)
        config = architecture.new_config((rae.channels, side, side), recipe.latents["num_classes"], size)
        return cls(architecture, config, replace(rae, side=side, **scaled), settings)

    @property
    def rows(self) -> int:
        return self.settings.batch_size or (8 if processes().device.type == "cpu" else 32)

    @property
    def class_names(self) -> list[str]:
        return [str(label) for label in range(self.config.num_classes)]

    @property
    def time_shift(self) -> float:
        return default_time_shift(*self.config.latent_shape)

    def build(self, kind: GeneratorKind) -> Generator:
        """A generator on this process's device."""
        return self.architecture.build(kind, self._config(kind)).to(processes().device)

    def _config(self, kind: GeneratorKind) -> Any:
        late_r = self.settings.late_r and kind == "student"
        return with_late_r(self.architecture, self.config) if late_r else self.config

    def flops(self, kind: GeneratorKind) -> float:
        """Of one evaluation for one image."""
        return 1e9 * generator_flops(self.architecture, kind, self._config(kind))["flops"]

    def encoder_flops(self) -> float:
        return 1e9 * encoder_flops(rae_outline(self.rae))["flops"]

    def decoder_flops(self) -> float:
        return 1e9 * decoder_flops(rae_outline(self.rae))["flops"]

    def saved_generator(self, folder: Path, kind: GeneratorKind) -> GeneratorFile:
        """Written to a folder and opened."""
        path = folder / f"{kind}.safetensors"
        described = {"time_shift": self.time_shift, "class_names": self.class_names, "preset": self.settings.preset}
        network = self.architecture.build(kind, self.config)
        save_generator(path, network, self.architecture.name, described, Provenance())
        return open_generator(path)

    def saved_rae(self, folder: Path) -> RAEFile:
        """Likewise."""
        save_rae(folder / "rae.safetensors", RAE(self.rae), {"preset": self.settings.preset}, Provenance())
        return RAEFile.open(folder / "rae.safetensors")

    def random_latents(self, count: int) -> torch.Tensor:
        """(count, C, H, W) float16, as they are stored."""
        return torch.randn(count, *self.config.latent_shape).half()
