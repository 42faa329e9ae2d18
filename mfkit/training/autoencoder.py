"""train-rae: the encoder (given, or pre-trained on the images), the decoder, and the latents' mean and variance."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import Tensor, nn

from mfkit.autoencoders.encoder import Encoder
from mfkit.autoencoders.encoders import TINY, open_encoder
from mfkit.autoencoders.pretraining import MaskedPretraining, mask_patches
from mfkit.autoencoders.rae import RAE, assemble, save_rae
from mfkit.config.presets import DECODER_SIZES, PresetName
from mfkit.config.settings import AutoencoderSettings, TrainingSettings
from mfkit.data.grid import paired, write_grid
from mfkit.data.images import ImageDataset, class_names
from mfkit.data.loader import Batch, all_batches, inference_batches
from mfkit.data.order import shuffle
from mfkit.data.stream import StreamDataset
from mfkit.errors import UsageError
from mfkit.flow.objectives.base import Loss
from mfkit.flow.random import Draws
from mfkit.flow.times import expand_to
from mfkit.runtime.distributed import processes
from mfkit.runtime.seeding import seeded
from mfkit.training.product import produce
from mfkit.training.task import RunOptions, Task, in_one_piece

logger = logging.getLogger(__name__)

_GRID_COLUMNS = 8


def train_rae(
    images: ImageDataset, encoder: str, encoder_weights: str | None, preset: PresetName, settings: TrainingSettings,
    sizes: AutoencoderSettings, options: RunOptions,
) -> str:  # fmt: skip
    """Trains the decoder on a frozen encoder and writes both with the latents' statistics.

    :param encoder: see :func:`~mfkit.autoencoders.encoders.open_encoder`; ``tiny`` is first pre-trained on the images.
    :param encoder_weights: a local copy of a timm model's weights.
    :returns: the line for standard output.
    """
    if isinstance(images, StreamDataset) and not images.repeatable:
        raise UsageError("train-rae reads the images many times; a stream can be read once: give a folder or shards")
    if isinstance(images, StreamDataset) and settings.sample_every:
        raise UsageError("--sample-every shows the first images, which a stream cannot give again and again")
    inputs = {"images": images.artifact}
    with seeded(settings.seed):
        side = sizes.image_size // sizes.patch
        opened = open_encoder(encoder, side, size=sizes.encoder_size, weights=encoder_weights)
        sizes = replace(sizes, encoder_size=opened.size)
        rae = _fresh(opened, sizes)
    if opened.source:
        inputs["encoder"] = opened.source
    config = {"preset": preset, "class_names": class_names(images.artifact)}

    def tasks() -> Iterator[Task]:
        rae.to(processes().device)
        digests = {role: artifact.digest for role, artifact in inputs.items()}
        resume_key = asdict(sizes) | {"encoder": encoder} | digests
        if encoder == TINY:
            yield _pretraining(rae, images, replace(settings, steps=sizes.pretrain_steps), sizes, resume_key)
            rae.encoder.requires_grad_(False)
        _measure_latents(rae, images, settings.workers)
        yield _decoder_training(rae, images, settings, sizes, resume_key, options)

    return produce(
        kind="rae", network=rae, inputs=inputs, settings=asdict(settings) | asdict(sizes) | {"encoder": encoder},
        seed=settings.seed, tasks=tasks, options=options,
        save=lambda path, provenance: save_rae(path, rae, config, provenance),
    )  # fmt: skip


def _pretraining(
    rae: RAE, images: ImageDataset, settings: TrainingSettings, sizes: AutoencoderSettings, resume_key: dict
) -> Task:
    """Masked prediction of the pixels, and of the class where the images have one."""
    side, classes = rae.config.side, class_names(images.artifact)
    if not classes:
        logger.warning("%s does not name its classes: the encoder is pre-trained without labels", images.artifact.path)
    with seeded(settings.seed + 1):
        network = MaskedPretraining(
            rae.encoder,
            rae.config.channels,
            sizes.encoder_size // side,
            len(classes) if sizes.class_loss_weight else 0,
        ).to(processes().device)

    def loss(net: nn.Module, batch: Batch) -> Loss:
        pixels = rae.encoder_input(_unit(batch.columns["image"]))
        draws = Draws(settings.seed, "train-rae/encoder", batch.positions, pixels.device)
        masked = draws.uniform("patch", side * side) < sizes.mask_ratio * draws.uniform("mask", 1)
        predicted, logits = net(mask_patches(pixels, masked.view(-1, side, side)))
        error = (predicted - pixels).square().mean()  # of all pixels, masked and seen
        if logits is None:
            return Loss(error, error.detach())
        classification = F.cross_entropy(logits, batch.columns["label"])
        return Loss(error + sizes.class_loss_weight * classification, error.detach())

    return Task(
        network=network, data=shuffle(images), loss=in_one_piece(loss), settings=replace(settings, sample_every=0),
        resume_key=resume_key,
        blocks=list(rae.encoder.get_submodule("blocks").children()), suffix=".encoder",
    )  # fmt: skip


def _decoder_training(
    rae: RAE, images: ImageDataset, settings: TrainingSettings, sizes: AutoencoderSettings, resume_key: dict,
    options: RunOptions,
) -> Task:  # fmt: skip
    """L1 of the pixels plus the squared error of the encoder's features, from latents with some noise."""

    def loss(net: nn.Module, batch: Batch) -> Loss:
        pixels = _unit(batch.columns["image"])
        with torch.no_grad():
            features = rae.features(pixels)
        draws = Draws(settings.seed, "train-rae/decoder", batch.positions, pixels.device)
        sigma = sizes.noise_tau * expand_to(draws.uniform("sigma"), features)
        noise = draws.normal("noise", features.shape[1:])
        decoded = net(features + sigma * noise * rae.latent_scale)
        value = (decoded - pixels).abs().mean()
        if sizes.feature_loss_weight:
            value = value + sizes.feature_loss_weight * (rae.features(decoded) - features).square().mean()
        return Loss(value, (decoded - pixels).square().mean().detach())

    def draw_grid(step: int) -> None:
        """The first images, and under each row of them what is decoded from their latents."""
        batch = next(all_batches(images, 3 * _GRID_COLUMNS))
        pixels = _unit(batch.columns["image"].to(rae.device))
        with torch.no_grad():
            grid = paired(pixels, rae.decode(rae.encode(pixels)), _GRID_COLUMNS)
        write_grid(options.output.with_suffix(f".step-{step:07d}.png"), grid, _GRID_COLUMNS)

    return Task(
        network=rae, data=shuffle(images), loss=in_one_piece(loss), settings=settings, resume_key=resume_key,
        draw_grid=draw_grid,
        blocks=list(rae.decoder.get_submodule("decoder_layers").children()),
    )  # fmt: skip


@torch.no_grad()
def _measure_latents(rae: RAE, images: ImageDataset, workers: int) -> None:
    """Sets the latents' mean and variance, per element, over all images."""
    shape, device = rae.config.latent_shape, rae.device
    exact = torch.device("cpu") if device.type == "mps" else device  # Apple's devices have no float64
    total, squares = (torch.zeros(shape, dtype=torch.float64, device=exact) for _ in range(2))
    count = torch.zeros((), dtype=torch.float64, device=exact)
    state = processes()
    batches = inference_batches(
        images, 256, 256, lambda part: part % state.num_processes == state.process_index, workers
    )
    for _, batch in batches:
        features = rae.features(_unit(batch.columns["image"].to(device))).to(exact).double()
        total += features.sum(0)
        squares += features.square().sum(0)
        count += len(features)
    total, squares, count = (reduce(value, "sum") for value in (total, squares, count))
    rae.latent_mean.copy_(total / count)
    rae.latent_var.copy_(squares / count - (total / count).square())


def _fresh(encoder: Encoder, sizes: AutoencoderSettings) -> RAE:
    """An RAE with this encoder and a fresh decoder."""
    channels, side, _ = encoder.latent_shape()
    if sizes.image_size % side:
        raise UsageError(
            f"images of {sizes.image_size} pixels do not divide into the encoder's {side} x {side} tokens; "
            "give --image-size, --patch or --encoder-size"
        )
    return assemble(
        encoder, dict(image_size=sizes.image_size, channels=channels, side=side, **DECODER_SIZES[sizes.decoder])
    )


def _unit(images: Tensor) -> Tensor:
    """Bytes to [0, 1]."""
    return images.float() / 255
