"""train-rae: the encoder (given, or pre-trained on the images), the decoder, and the latents' mean and variance."""

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from mfkit.artifacts.artifact import Artifact, provenance
from mfkit.artifacts.atomic import claimed
from mfkit.autoencoders import weights
from mfkit.autoencoders.encoders import TINY, Encoder, assemble, open_encoder
from mfkit.autoencoders.pretraining import MaskedPretraining, hide_patches
from mfkit.autoencoders.rae import RAE
from mfkit.config.presets import DECODER_SIZES
from mfkit.config.settings import AutoencoderSettings, PresetName, TrainingSettings
from mfkit.data.figures import write_grid
from mfkit.data.images import ImageSource, class_names
from mfkit.data.loader import Batch
from mfkit.data.sequence import batches_by_shard, batches_of
from mfkit.data.stream import ShardStream
from mfkit.errors import UsageError
from mfkit.flow.losses import Loss, masked_prediction, reconstruction
from mfkit.flow.random import Draws
from mfkit.flow.times import per_row
from mfkit.models.dit import parameter_count
from mfkit.runtime.distributed import processes
from mfkit.runtime.seeding import seeded
from mfkit.training.checkpoint import forget
from mfkit.training.loop import Run, Stage, train
from mfkit.training.plan import Execution

logger = logging.getLogger(__name__)

_GRID_COLUMNS = 8


def train_rae(
    images: ImageSource, encoder: str, encoder_weights: str | None, preset: PresetName, settings: TrainingSettings,
    sizes: AutoencoderSettings, execution: Execution,
) -> str:  # fmt: skip
    """Trains the decoder on a frozen encoder and writes both with the latents' statistics.

    :param encoder: see :func:`~mfkit.autoencoders.encoders.open_encoder`; ``tiny`` is first pre-trained on the images.
    :param encoder_weights: a local copy of a timm model's weights.
    :returns: the line for standard output.
    """
    if isinstance(images, ShardStream) and not images.repeatable:
        raise UsageError("train-rae reads the images many times; a stream can be read once: give a folder or shards")
    if isinstance(images, ShardStream) and settings.sample_every:
        raise UsageError("--sample-every shows the first images, which a stream cannot give again and again")
    inputs = {"images": images.artifact}
    with seeded(settings.seed):
        opened = open_encoder(encoder, sizes.encoder_size, encoder_weights)
        rae = _fresh(opened, sizes)
    if opened.source:
        inputs["encoder"] = opened.source
    if execution.dry_run:
        return _description(rae, encoder, settings, sizes, execution.output)
    used = [artifact.path for artifact in inputs.values()]
    with claimed(execution.output, overwrite=execution.overwrite, suffix=".safetensors", inputs=used):
        _train(rae, images, encoder, inputs, preset, settings, sizes, execution)
    return str(execution.output)


def _train(
    rae: RAE, images: ImageSource, encoder: str, inputs: dict[str, Artifact], preset: PresetName,
    settings: TrainingSettings, sizes: AutoencoderSettings, execution: Execution,
) -> None:  # fmt: skip
    processes().wait_for_everyone()
    rae.to(processes().device)
    identity = asdict(sizes) | {"encoder": encoder} | {role: artifact.digest for role, artifact in inputs.items()}
    pretraining = execution.output.with_suffix(".encoder.safetensors")
    if encoder == TINY:
        steps = replace(settings, steps=sizes.encoder_steps)
        train(
            _pretraining(rae, images, steps, sizes), steps,
            Run(output=pretraining, identity=identity, restart=execution.restart),
        )  # fmt: skip
        rae.encoder.requires_grad_(False)
    _measure(rae, images, settings.workers)
    run = Run(output=execution.output, identity=identity, restart=execution.restart, trackers=execution.trackers)
    train(_decoder_training(rae, images, settings, sizes, execution.output), settings, run)
    record = provenance(execution.output.parent, inputs, seed=settings.seed)
    weights.save(execution.output, rae, "rae", {"preset": preset, "classes": class_names(images)}, record)
    if processes().is_main_process:
        forget(execution.output)
        forget(pretraining)
    processes().wait_for_everyone()


def _pretraining(rae: RAE, images: ImageSource, settings: TrainingSettings, sizes: AutoencoderSettings) -> Stage:
    side, classes = rae.config.side, class_names(images)
    if not classes:
        logger.warning("%s does not name its classes: the encoder is pre-trained without labels", images.artifact.path)
    with seeded(settings.seed + 1):
        network = MaskedPretraining(
            rae.encoder, rae.config.channels, sizes.encoder_size // side, len(classes) if sizes.label_weight else 0
        ).to(processes().device)

    def loss(net: nn.Module, batch: Batch) -> Loss:
        seen = rae.encoder_input(_unit(batch.columns["image"]))
        draws = Draws(settings.seed, "train-rae/encoder", batch.positions, seen.device)
        hidden = draws.uniform("patch", side * side) < sizes.mask * draws.uniform("mask", 1)
        predicted, logits = net(hide_patches(seen, hidden.view(-1, side, side)))
        return masked_prediction(seen, predicted, batch.columns["label"], logits, sizes.label_weight)

    blocks = list(rae.encoder.get_submodule("blocks").children())
    return Stage(network=network, source=images, loss=loss, blocks=blocks)


def _decoder_training(
    rae: RAE, images: ImageSource, settings: TrainingSettings, sizes: AutoencoderSettings, output: Path
) -> Stage:
    def loss(net: nn.Module, batch: Batch) -> Loss:
        pixels = _unit(batch.columns["image"])
        with torch.no_grad():
            features = rae.features(pixels)
        draws = Draws(settings.seed, "train-rae/decoder", batch.positions, pixels.device)
        sigma = sizes.noise * per_row(draws.uniform("sigma"), features)
        noise = draws.normal("noise", features.shape[1:])
        decoded = net(features + sigma * noise * rae.latent_scale)
        decoded_features = rae.features(decoded) if sizes.feature_weight else None
        return reconstruction(pixels, decoded, features, decoded_features, sizes.feature_weight)

    def picture(step: int) -> None:
        """The first images, and under each row of them what is decoded from their latents."""
        batch = next(batches_of(images, 3 * _GRID_COLUMNS, damage=images.damage))
        pixels = _unit(batch.columns["image"].to(rae.device))
        with torch.no_grad():
            pairs = zip(pixels.split(_GRID_COLUMNS), rae.decode(rae.encode(pixels)).split(_GRID_COLUMNS), strict=True)
        grid = torch.cat([row for pair in pairs for row in pair])
        write_grid(output.with_suffix(f".step-{step:07d}.png"), grid, _GRID_COLUMNS)

    blocks = list(rae.decoder.get_submodule("decoder_layers").children())
    return Stage(network=rae, source=images, loss=loss, picture=picture, blocks=blocks)


@torch.no_grad()
def _measure(rae: RAE, images: ImageSource, workers: int) -> None:
    """Sets the latents' mean and variance, per element, over all images."""
    shape = rae.config.latent_shape
    total, squares = (torch.zeros(shape, dtype=torch.float64, device=rae.device) for _ in range(2))
    count = torch.zeros((), dtype=torch.float64, device=total.device)
    state = processes()
    batches = batches_by_shard(
        images, 256, 256, lambda part: part % state.num_processes == state.process_index, workers, images.damage
    )
    for _, batch in batches:
        features = rae.features(_unit(batch.columns["image"].to(total.device))).double()
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
        raise UsageError(f"images of {sizes.image_size} pixels do not divide into the encoder's {side} x {side} tokens")
    return assemble(
        encoder, dict(image_size=sizes.image_size, channels=channels, side=side, **DECODER_SIZES[sizes.decoder])
    )


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255


def _description(rae: RAE, encoder: str, settings: TrainingSettings, sizes: AutoencoderSettings, output: Path) -> str:
    described: dict[str, Any] = {
        "output": str(output),
        "kind": "rae",
        "encoder": encoder,
        "parameters": parameter_count(rae),
        "latent": list(rae.config.latent_shape),
        "network": asdict(rae.config),
        "settings": asdict(settings) | asdict(sizes),
    }
    return json.dumps(described, indent=2)
