"""Features of images, for the distances between sets of them: Inception's, a timm ViT's, or an RAE encoder's."""

import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor, nn

from mfkit.artifacts.artifact import file_digest
from mfkit.autoencoders.rae import RAE
from mfkit.errors import InputError

INCEPTION = "inception"
Resize = Literal["clean", "legacy-tf"]
INCEPTION_WIDTH = 2048
_INCEPTION_SIZE = 299
_INCEPTION_DIGEST = "sha256:f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""Of ``inception-2015-12-05.pt``. It is TorchScript, a program: what was fetched is run only where it is this one."""

Take = Callable[[Tensor], Tensor]
"""Images (B, 3, S, S) uint8 -> (B, D) float32, on the CPU."""


@dataclass(frozen=True)
class Features:
    """What a set of images is turned into, and how the result says it."""

    take: Take
    described: dict[str, Any]
    image_size: int | None = None
    """Side that the images must have; None takes any."""
    probabilities: Take | None = None
    """Inception's class probabilities."""


def rae_features(rae: RAE, digest: str) -> Features:
    """The mean over the patches of the standardised latents."""

    def take(images: Tensor) -> Tensor:
        return rae.encode(images.to(rae.device).float() / 255).mean((2, 3)).cpu()

    size = rae.config.image_size
    name = "RAE encoder, mean of the standardised patch tokens"
    described = {"features": name, "features_digest": digest, "resize": f"bicubic to {size} where needed"}
    return Features(take, described, size)


def timm_features(
    name: str, network: nn.Module, size: int, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> Features:
    """What a timm ViT pools, such as DINOv2's class token (FD-DINOv2, arXiv 2306.04675)."""
    network = network.to(device).eval()
    shift, scale = (torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))
    resize = _resizer(size)

    @torch.no_grad()
    def take(images: Tensor) -> Tensor:
        return network((resize(images).to(device) / 255 - shift) / scale).flatten(1).float().cpu()

    digest = sha256()
    for value in network.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    described = {
        "features": f"{name}, pooled",
        "features_digest": f"weights-sha256:{digest.hexdigest()}",
        "resize": f"clean (PIL bicubic) to {size}",
    }
    return Features(take, described)


def inception_features(device: torch.device, resize: Resize, file: Path | None) -> Features:
    """The 2,048 pool features of Inception V3, by the TorchScript file that clean-fid uses (arXiv 2104.11222).

    :param resize: ``clean`` resizes with antialiasing before the network; ``legacy-tf`` leaves it to the network, as
        ADM's evaluation and the original FID do.
    :param file: a local copy of ``inception-2015-12-05.pt``; None lets clean-fid fetch it.
    """
    network, used = _inception(device, file)
    shrink = _resizer(_INCEPTION_SIZE) if resize == "clean" else Tensor.float

    @torch.no_grad()
    def take(images: Tensor) -> Tensor:
        pixels = shrink(images).to(device)
        if resize == "clean":
            return network.layers((pixels - 128) / 128).flatten(1).float().cpu()
        return network(pixels, return_features=True).flatten(1).float().cpu()

    @torch.no_grad()
    def probabilities(images: Tensor) -> Tensor:
        return network(shrink(images).to(device), no_output_bias=True).float().cpu()

    described = {"features": "Inception V3 (2015-12-05), pool", "features_digest": file_digest(used), "resize": resize}
    return Features(take, described, probabilities=probabilities)


def _inception(device: torch.device, file: Path | None) -> tuple[Any, Path]:
    """The network, and its file."""
    try:
        file = file or _fetched()
        network = torch.jit.load(file, map_location=device).eval()
    except (URLError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"Inception's weights cannot be had ({reason}); give --inception FILE, or other --features"
        ) from error
    if not hasattr(network, "layers"):
        raise InputError(f"{file} is TorchScript of another network than inception-2015-12-05.pt")
    return network, file


def _fetched() -> Path:
    """clean-fid's copy of Inception, in the user's own cache, where no one else puts a program."""
    from cleanfid.downloads_helper import check_download_inception

    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mfkit"
    folder.mkdir(parents=True, exist_ok=True)
    with redirect_stdout(sys.stderr):  # where standard output is kept for results
        file = Path(check_download_inception(fpath=str(folder)))
    if file_digest(file) != _INCEPTION_DIGEST:
        raise InputError(f"{file} is not the published inception-2015-12-05.pt, or not all of it: remove it")
    return file


def _resizer(size: int) -> Take:
    """clean-fid's resize: Pillow's bicubic, per colour, not rounded. float32 in [0, 255]."""
    from cleanfid.resize import make_resizer

    resize = make_resizer("PIL", False, "bicubic", (size, size))

    def apply(images: Tensor) -> Tensor:
        arrays = [resize(image.permute(1, 2, 0).numpy()) for image in images]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    return apply
