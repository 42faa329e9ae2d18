"""Feature extractors, for the distances between sets of images: Inception's, a timm ViT's, an RAE encoder's, pixels.

To add one: a function that opens it, and a line in :data:`EXTRACTORS`.
"""

import os
import sys
from collections.abc import Callable, Collection
from contextlib import redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mfkit.artifacts.artifact import file_digest
from mfkit.errors import InputError, UsageError
from mfkit.formats.hub import resolve
from mfkit.runtime.distributed import processes

Resize = Literal["clean", "legacy-tf"]
INCEPTION_WIDTH = 2048
_INCEPTION_SIZE = 299
_INCEPTION_DIGEST = "sha256:f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""Of ``inception-2015-12-05.pt``. It is TorchScript, a program: what was fetched is run only where it is this one."""
_TIMM_SIZE = 224
"""Side of the input of a timm encoder, as FD-DINOv2 is defined."""
_PIXELS = 8
"""Side to which pictures are pooled to be compared as they are."""


@dataclass(frozen=True, kw_only=True)
class FeatureRequest:
    """Which features the user wants."""

    features: str = "inception"
    resize: Resize = "clean"
    inception: Path | None = None
    """Local copy of Inception's TorchScript file."""
    features_weights: str | None = None
    """Local copy of the weights of a timm model, or its place on the hub."""


@dataclass(frozen=True)
class FeatureExtractor:
    """What images are turned into, and how a result says it."""

    extract: Callable[[Tensor, Collection[str]], dict[str, Tensor]]
    """(images (B, 3, S, S) uint8, names of outputs) -> each (B, D) float32, on the CPU."""
    outputs: Collection[str]
    """What it can give: ``features``, and perhaps ``probabilities`` of classes and ``spatial`` features."""
    conditions: dict[str, Any]
    differentiable: Callable[[Tensor], Tensor]
    """Images (B, 3, S, S) in [0, 1], on the network's device, to ``features`` (B, D) float32, with a gradient."""
    image_size: int | None = None
    """Side that the images must have; None takes any."""


def open_features(request: FeatureRequest) -> FeatureExtractor:
    """The extractor that ``--features`` names: of the table, an RAE's file, or a timm model."""
    name = request.features
    if name != "inception" and request.inception:
        raise UsageError("--inception is the file of --features inception")
    if name != "inception" and request.resize != "clean":
        raise UsageError(f"--resize {request.resize} is Inception's way; it needs --features inception")
    is_file = name.endswith(".safetensors")
    if request.features_weights and (name in EXTRACTORS or is_file):
        raise UsageError("--features-weights gives a timm model its weights; name it with --features")
    if name in EXTRACTORS:
        return EXTRACTORS[name](request)
    return rae_features(Path(name)) if is_file else _timm(request)


def rae_features(path: Path) -> FeatureExtractor:
    """The mean over the patches of the standardised latents of an RAE."""
    from mfkit.autoencoders.rae import RAEFile

    file = RAEFile.open(path)
    rae = file.network.to(processes().device).requires_grad_(False)
    size = rae.config.image_size

    def mean_token(images: Tensor) -> Tensor:
        return rae.standardised(images).mean((2, 3))

    @torch.no_grad()
    def extract(images: Tensor, outputs: Collection[str]) -> dict[str, Tensor]:
        return {"features": mean_token(images.to(rae.device).float() / 255).cpu()}

    conditions = {
        "features": "RAE encoder, mean of the standardised patch tokens", "features_digest": file.artifact.digest,
        "resize": f"bicubic to {size} where needed",
    }  # fmt: skip
    return FeatureExtractor(extract, ("features",), conditions, mean_token, size)


def _timm(request: FeatureRequest) -> FeatureExtractor:
    """What a timm ViT pools, such as DINOv2's class token (FD-DINOv2, arXiv 2306.04675)."""
    from mfkit.autoencoders.timm_encoder import TIMM

    name, device = request.features, processes().device
    encoder = TIMM.open(name, _TIMM_SIZE, resolve(request.features_weights) if request.features_weights else None)
    network = encoder.network.to(device).eval().requires_grad_(False)
    shift, scale = (torch.tensor(values, device=device).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    resize = _pil_bicubic(_TIMM_SIZE)

    def pooled(images: Tensor) -> Tensor:
        return network((images - shift) / scale).flatten(1).float()

    @torch.no_grad()
    def extract(images: Tensor, outputs: Collection[str]) -> dict[str, Tensor]:
        return {"features": pooled(resize(images).to(device) / 255).cpu()}

    def differentiable(images: Tensor) -> Tensor:
        return pooled(_antialiased_bicubic(images, _TIMM_SIZE))

    digest = sha256()
    for value in network.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    conditions = {
        "features": f"{name}, pooled", "features_digest": f"weights-sha256:{digest.hexdigest()}",
        "resize": f"clean (PIL bicubic) to {_TIMM_SIZE}",
    }  # fmt: skip
    return FeatureExtractor(extract, ("features",), conditions, differentiable)


def _inception(request: FeatureRequest) -> FeatureExtractor:
    """The 2,048 pool features of Inception V3, by the TorchScript file that clean-fid uses (arXiv 2104.11222).

    ``clean`` resizes with antialiasing before the network; ``legacy-tf`` without, as ADM's evaluation and the original
    FID do.
    """
    device, clean = processes().device, request.resize == "clean"
    network, file = _open_inception(device, request.inception)
    resize = _pil_bicubic(_INCEPTION_SIZE) if clean else Tensor.float

    @torch.no_grad()
    def extract(images: Tensor, outputs: Collection[str]) -> dict[str, Tensor]:
        pixels = resize(images).to(device)
        found = {}
        if "features" in outputs and clean:
            found["features"] = network.layers((pixels - 128) / 128)
        elif "features" in outputs:
            found["features"] = network(pixels, return_features=True)
        if "probabilities" in outputs:
            found["probabilities"] = network(pixels, no_output_bias=True)
        if "spatial" in outputs:
            of_size = pixels if clean else _tf1_bilinear(pixels, _INCEPTION_SIZE)
            found["spatial"] = _spatial(network.layers, (of_size - 128) / 128)
        return {name: value.flatten(1).float().cpu() for name, value in found.items()}

    def differentiable(images: Tensor) -> Tensor:
        if clean:
            found = network.layers((255 * _antialiased_bicubic(images, _INCEPTION_SIZE) - 128) / 128)
        else:
            found = network(255 * images, return_features=True)
        return found.flatten(1).float()

    conditions = {
        "features": "Inception V3 (2015-12-05), pool", "features_digest": file_digest(file), "resize": request.resize
    }  # fmt: skip
    return FeatureExtractor(extract, ("features", "probabilities", "spatial"), conditions, differentiable)


_BEFORE_MIXED_6 = (
    "conv", "conv_1", "conv_2", "pool0", "conv_3", "conv_4", "pool1", "mixed", *(f"mixed_{i}" for i in range(1, 6))
)  # fmt: skip


def _spatial(layers: Any, pixels: Tensor) -> Tensor:
    """(B, 17, 17, 7): the first 7 channels of ``mixed_6/conv``, as ADM's evaluation takes them for sFID."""
    for name in _BEFORE_MIXED_6:
        pixels = getattr(layers, name)(pixels)
    return layers.mixed_6.conv(pixels)[:, :7].movedim(1, -1)


def _tf1_bilinear(images: Tensor, size: int) -> Tensor:
    """TensorFlow 1's bilinear resize of (B, C, H, W), as in Inception's own graph: pixel i is taken at i * H / size."""
    for axis in (2, 3):
        length = images.shape[axis]
        place = torch.arange(size, device=images.device) * (length / size)
        below = place.long()
        share = (place - below).view((1, 1, -1, 1) if axis == 2 else (-1,))
        above = (below + 1).clamp(max=length - 1)
        images = images.index_select(axis, below).lerp(images.index_select(axis, above), share)
    return images


def _pixels(request: FeatureRequest) -> FeatureExtractor:
    """The picture itself at 8 x 8 pixels: coarse, but nothing is ever trained on it.

    Squares of distances are means over the three colours, so that a grey picture counts once.
    """

    def pooled(images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, _PIXELS).flatten(1) / 3**0.5

    def extract(images: Tensor, outputs: Collection[str]) -> dict[str, Tensor]:
        return {"features": pooled(images.float() / 255)}

    conditions = {"features": f"pixels, pooled to {_PIXELS} x {_PIXELS}", "resize": "pooled"}
    return FeatureExtractor(extract, ("features",), conditions, pooled)


EXTRACTORS: dict[str, Callable[[FeatureRequest], FeatureExtractor]] = {
    "inception": _inception,
    "pixels": _pixels,
}


def _open_inception(device: torch.device, file: Path | None) -> tuple[Any, Path]:
    """The network, and its file."""
    try:
        file = file or _download_inception()
        network = torch.jit.load(file, map_location=device).eval()
    except (URLError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"Inception's weights cannot be loaded ({reason}); pass --inception FILE, or other --features"
        ) from error
    if not hasattr(network, "layers"):
        raise InputError(f"{file} is TorchScript of another network than inception-2015-12-05.pt")
    return network, file


def _download_inception() -> Path:
    """clean-fid's copy of Inception, in the user's own cache, where no one else puts a program."""
    from cleanfid.downloads_helper import check_download_inception

    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mfkit"
    folder.mkdir(parents=True, exist_ok=True)
    with redirect_stdout(sys.stderr):  # where standard output is kept for results
        file = Path(check_download_inception(fpath=str(folder)))
    if file_digest(file) != _INCEPTION_DIGEST:
        raise InputError(f"{file} is not the published inception-2015-12-05.pt, or not all of it: remove it")
    return file


def _antialiased_bicubic(images: Tensor, size: int) -> Tensor:
    """What clean-fid's resize does, of images in [0, 1], with a gradient."""
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)


def _pil_bicubic(size: int) -> Callable[[Tensor], Tensor]:
    """clean-fid's resize: Pillow's bicubic, per colour, not rounded. float32 in [0, 255]."""
    from cleanfid.resize import make_resizer

    resize = make_resizer("PIL", False, "bicubic", (size, size))

    def apply(images: Tensor) -> Tensor:
        arrays = [resize(image.permute(1, 2, 0).numpy()) for image in images]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)

    return apply
