"""A generator with its decoder: a few images at once, for someone who looks at them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from mfkit.autoencoders.autoencoder import Autoencoder
from mfkit.autoencoders.files import autoencoder_of
from mfkit.config.settings import SampleSettings
from mfkit.flow.random import Draws
from mfkit.inference.sampler import Sampler, sampler_of
from mfkit.models.files import GeneratorFile, open_generator
from mfkit.runtime.distributed import processes


@dataclass(frozen=True)
class Painter:
    """Networks in memory."""

    file: GeneratorFile
    autoencoder: Autoencoder

    @classmethod
    def open(cls, model: Path, rae: Path | None = None) -> Self:
        """:raises InputError: it is no generator, or its decoder is not where it was."""
        file, device = open_generator(model), processes().device
        autoencoder = autoencoder_of(file.artifact, rae)
        autoencoder.check_decodes(file.latent_shape, model)
        file.network.to(device)
        return cls(file, autoencoder.load(latent_shape=file.latent_shape).to(device))

    def sampler(self, nfe: int | None) -> Sampler:
        """:param nfe: network evaluations; None is one of a student, 50 of a teacher."""
        return sampler_of(self.file.network, SampleSettings(nfe=nfe), self.file.description.time_shift)

    def noise(self, seed: int, count: int) -> Tensor:
        """(count, C, H, W), of the first images that ``mfkit sample --seed`` draws."""
        return Draws(seed, "sample", range(count), processes().device).normal("noise", self.file.latent_shape)

    @torch.no_grad()
    def draw(self, noise: Tensor, labels: Tensor, nfe: int | None = None) -> Tensor:
        """(B, 3, S, S) in [0, 1].

        :param labels: (B,), class indices.
        """
        return self.autoencoder.decode(self.sampler(nfe)(noise, labels.to(noise.device))).float()
