"""The grid that training draws now and then: always from the same noise, one row per class."""

import logging
from pathlib import Path

import torch

from mfkit.artifacts.artifact import Artifact
from mfkit.config.settings import SampleSettings
from mfkit.data.grid import write_grid
from mfkit.flow.random import Draws
from mfkit.inference.sampler import sampler_of
from mfkit.models.generator import Generator

logger = logging.getLogger(__name__)

_ROWS, _COLUMNS = 10, 8


def draw_sample_grid(network: Generator, time_shift: float, autoencoder: Artifact, output: Path, step: int) -> None:
    """Writes ``OUTPUT.step-N.png``: up to ten classes, eight images each."""
    from mfkit.autoencoders.files import open_autoencoder  # timm and diffusers take seconds to import

    device, shape = next(network.parameters()).device, network.config.latent_shape
    decoder = open_autoencoder(autoencoder.path).load(latent_shape=shape).to(device)
    labels = torch.arange(min(_ROWS, network.config.num_classes), device=device).repeat_interleave(_COLUMNS)
    noise = Draws(0, "sample", range(len(labels)), device).normal("noise", shape)
    network.eval()
    with torch.no_grad():
        images = decoder.decode(sampler_of(network, SampleSettings(), time_shift)(noise, labels))
    network.train()
    path = output.with_suffix(f".step-{step:07d}.png")
    write_grid(path, images, _COLUMNS)
    logger.info("wrote %s", path)
