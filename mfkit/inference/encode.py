"""encode: images to shards of standardised latents."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from mfkit.artifacts.artifact import Artifact, open_artifact, provenance
from mfkit.autoencoders import weights
from mfkit.autoencoders.rae import RAE
from mfkit.autoencoders.vae import VAE
from mfkit.config.settings import DTypeName, EncodeSettings, OnBad, PresetName
from mfkit.data.codecs import STORED, array_bytes
from mfkit.data.images import class_names, open_images
from mfkit.data.loader import Batch
from mfkit.data.prefetch import behind
from mfkit.data.sequence import batches_by_shard
from mfkit.data.shards import STREAM, write_standard_output
from mfkit.data.stream import ShardStream
from mfkit.data.writer import Production
from mfkit.errors import InputError
from mfkit.formats import diffusers_folder
from mfkit.formats.hub import HUB, local
from mfkit.inference.micro_batches import Passes
from mfkit.runtime.distributed import processes


def open_vae(source: str) -> Artifact:
    """A diffusers VAE: the folder it was saved to, or a repository of the hub by its name (``owner/repo``)."""
    if not Path(source).exists() and not source.startswith(HUB):
        if Path(source).is_absolute() or source.count("/") != 1:
            raise InputError(f"--vae {source}: neither a folder nor the name of a repository (owner/repo)")
        source = HUB + source
    path = local(source, folder=True)
    if not path.is_dir():
        raise InputError(f"{path} is a file; --vae takes the folder that diffusers saved an {diffusers_folder.VAE} to")
    diffusers_folder.open_folder(path, diffusers_folder.VAE)
    return open_artifact(path)


def encode(
    images: str, autoencoder: Artifact, image_size: int, output: str, preset: PresetName, settings: EncodeSettings, *,
    mirror: bool, workers: int, overwrite: bool, on_bad: OnBad = "error",
) -> str | None:  # fmt: skip
    """Writes one latent per image, and one of its mirror image with ``mirror``, as shards or as a stream.

    :param autoencoder: an RAE's file, which has its own image size, or a diffusers VAE's folder.
    :returns: the output's path, for standard output; None for a stream.
    """
    rae = weights.load_autoencoder(autoencoder, image_size=image_size).to(processes().device)
    passes = Passes(rae.config.latent_shape[1] ** 2, settings.precision, rae.device)
    batch_size = passes.whole(settings.batch_size)
    source = open_images(images, rae.config.image_size, on_bad)
    names = class_names(source)
    inputs = {"images": source.artifact, "rae": autoencoder}
    description = {"dtype": settings.dtype, "mirrored": mirror, "preset": preset}
    shape = list(rae.config.latent_shape)
    if output == STREAM:
        # The number of classes of images that do not say it is known too late: whoever reads the stream gives it.
        known = {"shape": shape, "classes": names} if names else {}
        batches = batches_by_shard(source, settings.shard_size, batch_size, lambda shard: True, workers, source.damage)
        record = provenance(Path.cwd(), inputs, seed=None)
        behind(
            lambda encoded: write_standard_output("latents", known | description, record, _samples(encoded, names)),
            _encoded(batches, rae, passes, settings.dtype, mirror),
        )
        source.damage.report()
        return None
    folder = Path(output)
    shards = None if isinstance(source, ShardStream) else -(-len(source) // settings.shard_size)
    with Production(
        folder,
        inputs,
        settings.of_the_result() | {"mirror": mirror, "shape": shape},
        overwrite=overwrite,
        shards=shards,
    ) as production:
        batches = batches_by_shard(source, settings.shard_size, batch_size, production.wanted, workers, source.damage)

        def write(encoded: Iterator[_Encoded]) -> None:
            for shard, group in groupby(encoded, key=lambda item: item.shard):
                rows = range(shard * settings.shard_size, (shard + 1) * settings.shard_size)
                production.write(shard, _samples(group, names), partial(source.damage.among, rows))

        behind(write, _encoded(batches, rae, passes, settings.dtype, mirror))
        source.damage.add(production.left_out())
        source.damage.agree(production.written() // (1 + mirror))
        names = names or [str(label) for label in range(production.largest_label() + 1)]
        config = {"shape": shape, "classes": names} | description
        production.finish("latents", config, provenance(folder, inputs, seed=None))
    source.damage.report()
    return output


@dataclass(frozen=True)
class _Encoded:
    """Latents of some images, (B, C, H, W) in the format to be stored, by view; on the CPU."""

    shard: int
    numbers: list[int]
    labels: list[int]
    latents: dict[str, np.ndarray]


def _encoded(
    batches: Iterable[tuple[int, Batch]], rae: RAE | VAE, passes: Passes, stored: DTypeName, mirror: bool
) -> Iterator[_Encoded]:
    dtype = STORED[stored]

    def encoded(item: tuple[int, Batch, slice]) -> _Encoded:
        shard, batch, part = item
        numbers, labels = batch.positions[part], batch.columns["label"][part].tolist()
        pixels = batch.columns["image"][part].to(rae.device, non_blocking=True).float() / 255
        views = {"": pixels, "-mirrored": pixels.flip(-1)} if mirror else {"": pixels}
        latents = {view: passes.run(rae.encode, numbers, images) for view, images in views.items()}
        return _Encoded(shard, numbers, labels, {view: x.to(dtype).cpu().numpy() for view, x in latents.items()})

    parts = ((shard, batch, part) for shard, batch in batches for part in passes.split(batch.positions))
    return passes.each(encoded, parts)


def _samples(encoded: Iterable[_Encoded], names: list[str]) -> Iterator[dict[str, Any]]:
    for part in encoded:
        for row, (number, label) in enumerate(zip(part.numbers, part.labels, strict=True)):
            if names and label >= len(names):
                raise InputError(f"image {number} has label {label}, outside the {len(names)} classes")
            for view, latents in part.latents.items():
                key = f"{number:09d}{view}"
                yield {"__key__": key, "latent.npy": array_bytes(latents[row]), "cls": str(label).encode()}
