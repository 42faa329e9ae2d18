"""train-rae: the encoder (given, or pre-trained on the images), the decoder, and the latents' mean and variance."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import Tensor, nn

from mfkit.artifacts.artifact import Provenance, record_provenance
from mfkit.autoencoders.discriminator import Discriminator, adversarial_loss, augmented, hinge_loss
from mfkit.autoencoders.encoder import Encoder
from mfkit.autoencoders.encoders import LIBRARIES, TINY, open_encoder, open_trunk
from mfkit.autoencoders.perceptual import NONE, Perceptual, open_perceptual
from mfkit.autoencoders.pretraining import MaskedPretraining, mask_patches
from mfkit.autoencoders.rae import RAE, RAEFile, assemble, save_rae
from mfkit.config.presets import DECODER_SIZES, PresetName
from mfkit.config.settings import AutoencoderSettings, TrainingSettings
from mfkit.data.crops import larger_images, random_crops
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
    open_at: Callable[[int], ImageDataset], encoder: str, encoder_weights: str | None, preset: PresetName,
    settings: TrainingSettings, sizes: AutoencoderSettings, options: RunOptions, *, layers: Sequence[int] = (),
    keep_latents: bool = False,
) -> str:  # fmt: skip
    """Trains the decoder on a frozen encoder and writes both with the latents' statistics.

    :param open_at: opens the images, as squares of so many pixels.
    :param encoder: see :func:`~mfkit.autoencoders.encoders.open_encoder`; ``tiny`` is first pre-trained on the images.
    :param encoder_weights: a local copy of a timm model's weights.
    :param layers: of the encoder, whose mean the latents are; empty is its own, or the last.
    :param keep_latents: of the RAE that is the encoder: its statistics too, so that only the decoder is new.
    :returns: the line for standard output.
    """
    images = open_at(sizes.image_size)
    if isinstance(images, StreamDataset) and not images.repeatable:
        raise UsageError("train-rae reads the images many times; a stream can be read once: give a folder or shards")
    if isinstance(images, StreamDataset) and settings.sample_every:
        raise UsageError("--sample-every shows the first images, which a stream cannot give again and again")
    crops_of = larger_images(images, open_at, sizes.image_size, sizes.crop_scale)
    inputs = {"images": images.artifact}
    with seeded(settings.seed):
        side = sizes.image_size // sizes.patch
        opened = open_encoder(encoder, side, size=sizes.encoder_size, weights=encoder_weights)
        opened = replace(opened, layers=_checked_layers(layers, opened)) if layers else opened
        sizes = replace(sizes, encoder_size=opened.size)
        rae = _fresh(opened, sizes)
    if opened.source:
        inputs["encoder"] = opened.source
    config: dict[str, Any] = {"preset": preset, "class_names": class_names(images.artifact)}
    if keep_latents:
        if not opened.statistics or not opened.source or layers:
            raise UsageError("--keep-latents is for the RAE that --encoder names, as it is")
        config["latents_of"] = RAEFile.open(opened.source.path).latents_of

    def tasks() -> Iterator[Task]:
        rae.to(processes().device)
        perceptual, discriminator = (
            open_perceptual(sizes.perceptual, rae),
            _open_discriminator(rae, sizes, settings.seed),
        )
        digests = {role: artifact.digest for role, artifact in inputs.items()}
        resume_key = (
            asdict(sizes) | {"encoder": encoder, "layers": opened.layers, "keep_latents": keep_latents} | digests
        )
        if encoder == TINY:
            yield _pretraining(
                rae, images, replace(settings, steps=sizes.pretrain_steps, ema=settings.ema[:1]), sizes, resume_key
            )
            rae.encoder.requires_grad_(False)
        if keep_latents and opened.statistics:
            rae.latent_mean.copy_(opened.statistics[0])
            rae.latent_var.copy_(opened.statistics[1])
        else:
            _measure_latents(rae, images, settings.workers)
        task = _decoder_training(rae, images, crops_of, settings, sizes, resume_key, options, perceptual, discriminator)
        record = partial(record_provenance, options.output.parent, inputs, seed=settings.seed, settings=resolved)
        yield replace(task, save=lambda path: save(path, record()))

    def save(path: Path, provenance: Provenance) -> None:
        save_rae(path, rae, config, provenance)

    resolved = asdict(settings) | asdict(sizes) | {"encoder": encoder}
    return produce(
        kind="rae", network=rae, inputs=inputs, settings=resolved, seed=settings.seed, tasks=tasks, options=options,
        save=save,
    )  # fmt: skip


def _checked_layers(layers: Sequence[int], encoder: Encoder) -> list[int]:
    depth = encoder.library.depth(encoder.network)
    if list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= depth:
        raise UsageError(f"--layers: give numbers from 0 to {depth - 1}, each once and in order")
    return list(layers)


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
    rae: RAE, images: ImageDataset, crops_of: ImageDataset, settings: TrainingSettings, sizes: AutoencoderSettings,
    resume_key: dict, options: RunOptions, perceptual: Perceptual | None, discriminator: Discriminator | None,
) -> Task:  # fmt: skip
    """L1 of the pixels, a perceptual distance and what a discriminator says, from latents with some noise.

    :param images: shown by the grid. :param crops_of: at least as large; what is trained on is cut from them at random.
    """
    last = rae.decoder.get_submodule("decoder_pred").get_parameter("weight")

    def draws(batch: Batch) -> Draws:
        return Draws(settings.seed, "train-rae/decoder", batch.positions, rae.device)

    def crops(batch: Batch) -> Tensor:
        """(B, 3, S, S) in [0, 1], the same for both networks."""
        return _unit(random_crops(batch.columns["image"], rae.config.image_size, draws(batch).uniform("crop", 2)))

    def loss(net: nn.Module, batch: Batch) -> Loss:
        pixels = crops(batch)
        with torch.no_grad():
            features = rae.features(pixels)
        sigma = sizes.noise_tau * expand_to(draws(batch).uniform("sigma"), features)
        noise = draws(batch).normal("noise", features.shape[1:])
        decoded = net(features + sigma * noise * rae.latent_scale)
        value, parts = (decoded - pixels).abs().mean(), {}
        if perceptual:
            parts["perceptual"] = perceptual(decoded, pixels).mean()
            value = value + sizes.perceptual_weight * parts["perceptual"]
        step = batch.positions[0] // settings.batch_size
        if discriminator and step >= sizes.adversarial_start * settings.steps:
            parts["adversarial"] = _score(discriminator, augmented(decoded, draws(batch), "decoder"))
            share = adaptive_share(value, parts["adversarial"], last)
            value = value + sizes.adversarial_weight * share * parts["adversarial"]
        return Loss(value, (decoded - pixels).square().mean().detach(), parts)

    def discriminator_loss(net: nn.Module, batch: Batch) -> Loss:
        """Of what the decoder makes after its step, without noise, in the 256 shades of a picture."""
        pixels = crops(batch)
        with torch.no_grad():
            decoded = rae.reconstruct(rae.features(pixels)).clamp(0, 1)
            decoded = (255 * decoded).round() / 255
        real, ours = (net(augmented(one, draws(batch), "discriminator")) for one in (pixels, decoded))
        value = hinge_loss(real, ours)
        return Loss(value, value.detach())

    def draw_grid(step: int) -> None:
        """The first images, and under each row of them what is decoded from their latents."""
        batch = next(all_batches(images, 3 * _GRID_COLUMNS))
        pixels = _unit(batch.columns["image"].to(rae.device))
        with torch.no_grad():
            grid = paired(pixels, rae.decode(rae.encode(pixels)), _GRID_COLUMNS)
        write_grid(options.output.with_suffix(f".step-{step:07d}.png"), grid, _GRID_COLUMNS)

    order = shuffle(crops_of)
    adversary, state = None, {}
    if discriminator:
        state = {f"spectral.{name}": value for name, value in discriminator.heads.named_buffers()}
        first_step = math.ceil(sizes.discriminator_start * settings.steps)
        adversary = Task(
            network=discriminator, data=order, loss=in_one_piece(discriminator_loss),
            settings=replace(settings, ema=settings.ema[:1]), resume_key={}, first_step=first_step,
        )  # fmt: skip
    return Task(
        network=rae, data=order, loss=in_one_piece(loss), settings=settings, resume_key=resume_key,
        draw_grid=draw_grid, adversary=adversary,
        state=state,
        blocks=list(rae.decoder.get_submodule("decoder_layers").children()),
    )  # fmt: skip


def _open_discriminator(rae: RAE, sizes: AutoencoderSettings, seed: int) -> Discriminator | None:
    if sizes.discriminator == NONE:
        return None
    if sizes.adversarial_start < sizes.discriminator_start:
        raise UsageError("--adversarial-start: the decoder would descend a discriminator that is not trained yet")
    config = rae.config
    with seeded(seed + 2):
        if sizes.discriminator == "encoder":
            library = LIBRARIES[config.encoder_library]
            trunk = Encoder(
                library, config.encoder_name, config.encoder, config.encoder_size, rae.encoder, config.encoder_mean,
                config.encoder_std,
            )  # fmt: skip
        else:
            trunk = open_trunk(sizes.discriminator)
        return Discriminator(trunk).to(rae.device)


def _score(discriminator: Discriminator, images: Tensor) -> Tensor:
    """The adversarial loss of pictures, whose gradient reaches them and not the discriminator."""
    weights = [value for value in discriminator.parameters() if value.requires_grad]
    for value in weights:
        value.requires_grad_(False)
    try:
        return adversarial_loss(discriminator(images))
    finally:
        for value in weights:
            value.requires_grad_(True)


def adaptive_share(others: Tensor, adversarial: Tensor, last: nn.Parameter) -> Tensor:
    """By what the adversarial loss is multiplied, so that its gradient at the last layer is as large as the others'."""
    sizes = [torch.autograd.grad(value, last, retain_graph=True)[0].norm() for value in (others, adversarial)]
    return (sizes[0] / (sizes[1] + 1e-6)).clamp(0, 1e4).detach()


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
