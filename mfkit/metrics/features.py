"""Features of images for the Fréchet distance: Inception's through clean-fid, or an RAE encoder's."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor

from mfkit.errors import InputError
from mfkit.networks.rae import RAE

Features = Callable[[Tensor], Tensor]
"""Images (B, 3, S, S) uint8 -> (B, D) float32, on the CPU."""

INCEPTION = "inception"


def rae_features(rae: RAE) -> Features:
    """The mean over the patches of the standardised latents."""

    def extract(images: Tensor) -> Tensor:
        device = rae.latent_mean.device
        return rae.encode(images.to(device).float() / 255).mean((2, 3)).cpu()

    return extract


def inception_features(device: torch.device) -> Features:
    """The 2,048 pool features of Inception V3 with clean-fid's weights and antialiased resize (arXiv 2104.11222)."""
    from cleanfid.features import build_feature_extractor
    from cleanfid.resize import build_resizer

    try:
        with redirect_stdout(sys.stderr):  # where standard output is kept for results
            network = build_feature_extractor("clean", device, use_dataparallel=False)
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"Inception's weights cannot be had ({error}); --features takes an RAE file instead"
        ) from error
    resize = build_resizer("clean")

    @torch.no_grad()
    def extract(images: Tensor) -> Tensor:
        arrays = [resize(image.permute(1, 2, 0).numpy()) for image in images]
        batch = torch.from_numpy(np.stack(arrays).transpose(0, 3, 1, 2)).to(device)
        return network(batch).cpu()

    return extract
