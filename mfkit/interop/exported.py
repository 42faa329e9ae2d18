"""What an export writes, whatever its format: a student and the decoder of its latents."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mfkit.autoencoders.autoencoder import Autoencoder, AutoencoderFile
from mfkit.autoencoders.files import autoencoder_of
from mfkit.models.files import GeneratorFile, open_generator
from mfkit.models.generator import Generator


@dataclass(frozen=True)
class Exported:
    """An opened student and its autoencoder."""

    student: GeneratorFile
    autoencoder_file: AutoencoderFile

    @classmethod
    def open(cls, model: Path, rae: Path | None) -> "Exported":
        """:param rae: the RAE or VAE, where it is not the recorded one."""
        student = open_generator(model, "student")
        file = autoencoder_of(student.artifact, rae)
        file.check_decodes(student.latent_shape, model)
        return cls(student, file)

    @property
    def network(self) -> Generator:
        return self.student.network

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """With its weights, read once: evaluation mode, float32, on the CPU."""
        return self.autoencoder_file.load(latent_shape=self.student.latent_shape).eval()
