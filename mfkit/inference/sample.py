"""sample: images from noise."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mfkit.autoencoders.autoencoder import AutoencoderFile
from mfkit.autoencoders.files import ROLE
from mfkit.config.settings import SampleSettings
from mfkit.data.codecs import to_uint8
from mfkit.data.dataset import IndexedTars, read_batch
from mfkit.data.latents import LatentDataset, check_fit
from mfkit.data.prefetch import spare_threads
from mfkit.data.writer import ShardRecord
from mfkit.errors import UsageError
from mfkit.flow.random import Draws
from mfkit.inference.guided import GuidedTeacher
from mfkit.inference.images import GRID_IMAGES, SHARD_SIZE, ImageJob
from mfkit.inference.micro_batches import MicroBatches
from mfkit.inference.output import Result
from mfkit.inference.sampler import sampler_of
from mfkit.runtime.distributed import processes


class Sampling(ImageJob):
    """Samples ``count`` images. Image i depends on the seed and i alone; on GPUs up to rounding."""

    count: int

    def __init__(
        self, guided: GuidedTeacher, autoencoder: AutoencoderFile, count: int, settings: SampleSettings,
        times: Sequence[float] | None = None, noise: LatentDataset | None = None,
    ) -> None:  # fmt: skip
        """:param guided: the generator, which may be a student.
        :param times: see :func:`~mfkit.inference.sampler.sampler_of`.
        :param noise: trajectories, whose first states and labels are sampled from.
        """
        generator = guided.file
        self._device, self._settings, self.count = processes().device, settings, count
        autoencoder.check_decodes(generator.latent_shape, generator.path)
        description = generator.description
        velocity = guided.velocity(self._device) if generator.kind == "teacher" else None
        self._sampler = sampler_of(
            generator.network.to(self._device), settings, description.time_shift, velocity, times
        )
        self._autoencoder = autoencoder.load(latent_shape=generator.latent_shape).to(self._device)
        self._shape, self.class_names = generator.latent_shape, description.class_names
        self._labels = _labels(settings.labels, len(self.class_names))
        self._micro_batches = MicroBatches(self._shape[1] * self._shape[2], settings.precision, self._device)
        self.image_size = self._autoencoder.config.image_size
        self.inputs = {"model": generator.artifact, **guided.guides, ROLE: autoencoder.artifact}
        self.seed, self.num_shards, self.pack_threads = settings.seed, -(-count // SHARD_SIZE), spare_threads()
        self.resume_key = {
            "images": count, "size": self.image_size, "class_names": self.class_names, "model": generator.kind,
            "model_digest": generator.artifact.digest, "labels": settings.labels, "seed": settings.seed,
            "precision": settings.precision, **self._sampler.conditions, "guidance": guided.conditions,
        }  # fmt: skip
        self._noise: IndexedTars | None = None
        if noise:
            check_fit(noise, generator)
            if not isinstance(noise.dataset, IndexedTars) or count > len(noise.dataset):
                raise UsageError(f"--noise needs a folder of {count} trajectories or more; -n says how many to take")
            self._noise, self.inputs = noise.dataset, {**self.inputs, "noise": noise.artifact}
            self.resume_key |= {"noise": noise.artifact.digest, "labels": "those of the noise"}
        if description.trained_spaces:
            self.resume_key["trained_spaces"] = description.trained_spaces

    def results(self, is_mine: Callable[[int], bool]) -> Iterator[Result]:
        batch_size = self._settings.batch_size
        return self._micro_batches.map_ranges(
            self._sample, self.count, shard_size=SHARD_SIZE, batch_size=batch_size, is_mine=is_mine
        )

    def grid_images(self) -> Tensor:
        """The first."""
        count = min(self.count, GRID_IMAGES)
        batch_size = self._settings.batch_size
        results = self._micro_batches.map_ranges(self._sample, count, shard_size=count, batch_size=batch_size)
        return torch.cat([result.values for result in results]).float() / 255

    def _sample(self, part: tuple[int, range]) -> Result:
        shard, indices = part
        draws = Draws(self._settings.seed, "sample", indices, self._device)
        if self._noise is not None:
            columns = read_batch(self._noise, indices)
            noise, labels = columns["states"][:, 0].float().to(self._device), columns["label"].to(self._device)
        else:
            noise, labels = draws.normal("noise", self._shape), self._drawn_labels(draws, indices)
        numbers = torch.tensor(indices)
        images = self._micro_batches.evaluate(self._images, indices, noise, labels, numbers)
        return Result(shard, indices, to_uint8(images.float()).cpu(), labels.cpu())

    def _drawn_labels(self, draws: Draws, indices: Sequence[int]) -> Tensor:
        if self._labels is None:
            return (draws.uniform("label") * len(self.class_names)).long()
        return torch.tensor([self._labels[index % len(self._labels)] for index in indices], device=self._device)

    def _images(self, noise: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
        draws = Draws(self._settings.seed, "sample", numbers.tolist(), self._device)
        latents = self._sampler(noise, labels, lambda step: draws.normal(f"step {step}", self._shape))
        return self._autoencoder.decode(latents)

    def describe(self, records: list[ShardRecord] | None) -> dict[str, Any]:
        return self.resume_key


def _labels(labels: str, num_classes: int) -> list[int] | None:
    """The classes to sample in turn; None for random ones."""
    if labels == "random":
        return None
    if labels == "equal":
        return list(range(num_classes))
    try:
        chosen = [int(part) for part in labels.split(",")]
    except ValueError as error:
        raise UsageError(f"--labels {labels}: give equal, random, or class indices such as 0,3,7") from error
    for label in chosen:
        if not 0 <= label < num_classes:
            raise UsageError(f"--labels {labels}: class {label} is outside 0 to {num_classes - 1}")
    return chosen
