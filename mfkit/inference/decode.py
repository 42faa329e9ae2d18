"""decode: latents, or the ends of trajectories, to images; the inverse of encode."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mfkit.autoencoders.autoencoder import AutoencoderFile
from mfkit.autoencoders.files import ROLE
from mfkit.config.settings import DecodeSettings
from mfkit.data.codecs import to_uint8
from mfkit.data.dataset import IndexedTars, read_batch
from mfkit.data.grid import paired
from mfkit.data.images import open_images, recorded_images
from mfkit.data.latents import MIRRORED, LatentDataset
from mfkit.data.order import spread_evenly
from mfkit.data.prefetch import spare_threads
from mfkit.data.stream import StreamDataset
from mfkit.data.writer import ShardRecord
from mfkit.errors import InputError, UsageError
from mfkit.inference.images import GRID_COLUMNS, GRID_IMAGES, SHARD_SIZE, ImageJob
from mfkit.inference.micro_batches import MicroBatches, Part
from mfkit.inference.output import Result
from mfkit.runtime.distributed import processes


class Decoding(ImageJob):
    """Decodes each latent. Image i depends on latent i alone; on GPUs up to rounding."""

    def __init__(
        self, data: LatentDataset, autoencoder: AutoencoderFile, settings: DecodeSettings, *,
        workers: int, compare: int | None = None, images: str | None = None,
    ) -> None:  # fmt: skip
        """:param compare: how many the grid shows beside the images that they were encoded from.
        :param images: where these are; None is the recorded place.
        """
        autoencoder.check_decodes(data.shape, data.artifact.path)
        self._dataset, self._settings, self._workers = data.dataset, settings, workers
        self._compare, self._images, self._device = compare, images, processes().device
        self._autoencoder = autoencoder.load(latent_shape=data.shape).to(self._device)
        self._micro_batches = MicroBatches(data.shape[1] * data.shape[2], settings.precision, self._device)
        self.image_size, self.class_names = self._autoencoder.config.image_size, data.class_names
        self.count = None if isinstance(self._dataset, StreamDataset) else len(self._dataset)
        self.num_shards = None if self.count is None else -(-self.count // SHARD_SIZE)
        self.pack_threads = spare_threads()
        self.inputs = {data.artifact.kind: data.artifact, ROLE: autoencoder.artifact}
        self.resume_key = {
            "size": self.image_size, "class_names": self.class_names, "decoded": data.artifact.kind,
            "precision": settings.precision,
        }  # fmt: skip

    def results(self, is_mine: Callable[[int], bool]) -> Iterator[Result]:
        return self._micro_batches.map_samples(
            self._decode, self._dataset, shard_size=SHARD_SIZE, batch_size=self._settings.batch_size, is_mine=is_mine,
            workers=self._workers,
        )  # fmt: skip

    def _decode(self, part: Part) -> Result:
        shard, indices, columns = part
        latents = columns["latent"].float().to(self._device, non_blocking=True)
        images = self._micro_batches.evaluate(self._autoencoder.decode, indices, latents)
        return Result(shard, indices, to_uint8(images.float()).cpu(), columns["label"])

    def grid_images(self) -> Tensor:
        """Of each class its share."""
        dataset = self._dataset
        assert isinstance(dataset, IndexedTars)
        count = min(self._compare or GRID_IMAGES, len(dataset))
        places = spread_evenly(dataset.labels, count)
        parts = ((0, [place], read_batch(dataset, [place])) for place in places)
        decoded = torch.cat([result.values for result in self._micro_batches.map(self._decode, parts)])
        if not self._compare:
            return decoded.float() / 255
        return paired(self._originals(dataset, places).float() / 255, decoded.float() / 255, GRID_COLUMNS)

    def _originals(self, dataset: IndexedTars, places: Sequence[int]) -> Tensor:
        """(N, 3, S, S) uint8: the images that these latents were encoded from."""
        if dataset.artifact.kind != "latents":
            raise UsageError(f"--compare: {dataset.artifact.path} are of no images")
        if self._images:
            originals = open_images(self._images, self.image_size)
        else:
            originals = recorded_images(dataset.artifact, self.image_size, "--images")
        if isinstance(originals, StreamDataset):
            raise UsageError(f"--images {self._images}: give a folder or shards on this machine, not a stream")
        shown = []
        for place in places:
            key = dataset.key(place)
            number = key.removesuffix(MIRRORED)
            if not number.isdigit() or int(number) >= len(originals):
                raise InputError(f"{dataset.place(place)} is of no image of {originals.artifact.path}")
            image = originals[int(number)]["image"]
            shown.append(image.flip(-1) if key.endswith(MIRRORED) else image)
        return torch.stack(shown)

    def describe(self, records: list[ShardRecord] | None) -> dict[str, Any]:
        count = self.count
        if count is None and records is not None:
            count = sum(len(record.files) + (record.shard.samples if record.shard else 0) for record in records)
        return self.resume_key | ({} if count is None else {"images": count})
