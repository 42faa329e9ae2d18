"""encode: images to shards of latents."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mfkit.autoencoders.autoencoder import AutoencoderFile
from mfkit.autoencoders.files import ROLE
from mfkit.config.presets import PresetName
from mfkit.config.settings import DEFAULT_READING, EncodeSettings, Reading
from mfkit.data.codecs import DTYPES, array_bytes
from mfkit.data.images import class_names, open_images
from mfkit.data.latents import MIRRORED
from mfkit.data.stream import StreamDataset
from mfkit.data.writer import ShardRecord, TarSample
from mfkit.errors import InputError
from mfkit.inference.micro_batches import MicroBatches, Part
from mfkit.inference.output import Job, Result
from mfkit.runtime.distributed import processes


class Encoding(Job):
    """Encodes each image, and with ``mirror`` its mirror image too."""

    kind = "latents"

    def __init__(
        self, images: str, autoencoder: AutoencoderFile, image_size: int, preset: PresetName,
        settings: EncodeSettings, *, mirror: bool, workers: int, reading: Reading = DEFAULT_READING,
    ) -> None:  # fmt: skip
        """:param image_size: for an autoencoder that takes many; an RAE has its own."""
        self._network = autoencoder.load(image_size=image_size).to(processes().device)
        config = self._network.config
        self._dataset = open_images(images, config.image_size, reading)
        self.skips = self._dataset.skips
        self._settings, self._mirror, self._workers, self._preset = settings, mirror, workers, preset
        self._micro_batches = MicroBatches(
            config.latent_shape[1] * config.latent_shape[2], settings.precision, self._network.device
        )
        self._class_names = class_names(self._dataset.artifact)
        self._shape = list(config.latent_shape)
        self.inputs = {"images": self._dataset.artifact, ROLE: autoencoder.artifact}
        self.resume_key = settings.resume_key() | {"mirror": mirror, "shape": self._shape}
        size = None if isinstance(self._dataset, StreamDataset) else len(self._dataset)
        self.num_shards = None if size is None else -(-size // settings.shard_size)

    def results(self, is_mine: Callable[[int], bool]) -> Iterator[Result]:
        return self._micro_batches.map_samples(
            self._encode, self._dataset, shard_size=self._settings.shard_size, batch_size=self._settings.batch_size,
            is_mine=is_mine, workers=self._workers,
        )  # fmt: skip

    def _encode(self, part: Part) -> Result:
        shard, indices, columns = part
        images = columns["image"].to(self._network.device, non_blocking=True).float() / 255
        views = {"": images, MIRRORED: images.flip(-1)} if self._mirror else {"": images}
        latents = {
            view: self._micro_batches.evaluate(self._network.encode, indices, pixels) for view, pixels in views.items()
        }
        dtype = DTYPES[self._settings.dtype]
        stored = {view: value.to(dtype).cpu().numpy() for view, value in latents.items()}
        return Result(shard, indices, stored, columns["label"])

    def pack(self, result: Result) -> list[TarSample]:
        samples: list[TarSample] = []
        for row, (index, label) in enumerate(zip(result.indices, result.labels.tolist(), strict=True)):
            if self._class_names and label >= len(self._class_names):
                raise InputError(f"image {index} has label {label}, outside the {len(self._class_names)} classes")
            for view, latents in result.values.items():
                latent = array_bytes(latents[row])
                samples.append({"__key__": f"{index:09d}{view}", "latent.npy": latent, "cls": str(label).encode()})
        return samples

    def skipped(self, shard: int) -> Mapping[int, str]:
        size = self._settings.shard_size
        return self._dataset.skips.among(range(shard * size, (shard + 1) * size))

    def describe(self, records: list[ShardRecord] | None) -> dict[str, Any]:
        names = self._class_names
        if records is not None:
            skips = self._dataset.skips
            skips.add({index: why for record in records for index, why in record.skipped.items()})
            shards = [record.shard for record in records if record.shard]
            skips.sync(sum(shard.samples for shard in shards) // (1 + self._mirror))
            largest = max((label for shard in shards for label in shard.labels), default=0)
            names = names or [str(label) for label in range(largest + 1)]
        # The number of classes of a stream of foreign images is known too late: whoever reads it gives it.
        classes = {"class_names": names} if names else {}
        own = {"shape": self._shape, "dtype": self._settings.dtype, "mirrored": self._mirror, "preset": self._preset}
        return own | classes
