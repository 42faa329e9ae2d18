"""The grid that training draws now and then: always from the same noise, one row per class."""

import logging
from pathlib import Path
from typing import Any

import torch

from mfkit.artifacts.artifact import Artifact
from mfkit.autoencoders import weights
from mfkit.data.figures import write_grid
from mfkit.flow.random import Draws
from mfkit.inference.generate import default_steps, pictures
from mfkit.models.dit import DiT

logger = logging.getLogger(__name__)

_ROWS, _COLUMNS = 10, 8


def grid_from_fixed_noise(
    network: DiT, config: dict[str, Any], inputs: dict[str, Artifact], output: Path, step: int
) -> None:
    """Writes ``OUTPUT.step-N.png``: up to ten classes, eight pictures each."""
    device = next(network.parameters()).device
    rae = weights.load_autoencoder(inputs["rae"], side=network.config.side).to(device)
    classes = min(_ROWS, network.config.classes)
    labels = torch.arange(classes, device=device).repeat_interleave(_COLUMNS)
    shape = (network.config.channels, network.config.side, network.config.side)
    noise = Draws(0, "sample", range(len(labels)), device).normal("noise", shape)
    network.eval()
    images = pictures(network, rae, noise, labels, steps=default_steps(network), shift=config["time_shift"])
    network.train()
    path = output.with_suffix(f".step-{step:07d}.png")
    write_grid(path, images, _COLUMNS)
    logger.info("drew %s", path)
