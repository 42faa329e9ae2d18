"""Feature extractors, for the distances between sets of images: Inception's, a timm ViT's, an RAE encoder's, pixels.

To add one: a function that opens it, and a line in :data:`EXTRACTORS`.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mfkit.artifacts.artifact import file_digest
from mfkit.errors import UsageError
from mfkit.formats.hub import local_copy, resolve
from mfkit.runtime.distributed import processes

if TYPE_CHECKING:
    from mfkit.autoencoders.rae import RAEFile

Resize = Literal["auto", "clean", "legacy-tf"]


@dataclass(frozen=True)
class TimmSpace:
    """The pooled features of a network of timm: what it does before its classifier."""

    model: str
    size: int = 224
    """Side to which pictures are resized, as FD-DINOv2 is defined."""
    padded: int | None = None
    """Side to which they are filled up at the right and the bottom by the mean colour, so that patches divide it."""
    last_map: bool = False
    """Whether it is the mean of a convolutional network's last map instead, before the head's normalisation."""


NAMED_SPACES = {
    "dinov2": TimmSpace("vit_large_patch14_dinov2.lvd142m", 256, padded=266),
    "mae": TimmSpace("vit_large_patch16_224.mae"),
    "clip": TimmSpace("vit_large_patch14_clip_224.openai", 256, padded=266),
    "siglip2": TimmSpace("vit_so400m_patch16_siglip_256.v2_webli"),
    "convnext": TimmSpace("convnextv2_base.fcmae_ft_in22k_in1k", last_map=True),
}
"""Short names, of the spaces of FDr, with the sizes of its code (arXiv 2604.28190)."""
PUBLISHED_VALIDATION = {
    "inception": 1.68, "convnext": 56.87, "dinov2": 14.19, "mae": 0.04, "siglip2": 0.60, "clip": 5.60,
}  # fmt: skip
"""Distance of ImageNet's validation images to its training images at 256 pixels in them, as that paper gives it."""
_PIXELS = 8
"""Side to which pictures are pooled to be compared as they are."""


@dataclass(frozen=True, kw_only=True)
class FeatureRequest:
    """Which features the user wants."""

    features: str = "inception"
    resize: Resize = "auto"
    """``auto`` is clean, unless statistics that are compared with were resized otherwise."""
    inception: Path | None = None
    """Local copy of Inception's weights."""
    features_weights: str | None = None
    """Local copy of the weights of a timm model, or its place on the hub."""


@dataclass(frozen=True)
class FeatureExtractor:
    """What images are turned into, and how a result says it."""

    extract: Callable[[Tensor, Collection[str]], dict[str, Tensor]]
    """(inputs (B, …), names of outputs) -> each (B, D) float32, on the CPU."""
    outputs: Collection[str]
    """What it can give: ``features``, and perhaps ``probabilities`` of classes and ``spatial`` features."""
    conditions: dict[str, Any]
    differentiable: Callable[[Tensor], Tensor]
    """Images (B, 3, S, S) in [0, 1], on the network's device, to ``features`` (B, D) float32, with a gradient."""
    prepare: Callable[[Tensor], Tensor] | None = None
    """Makes the input of an image (3, S, S) uint8, such as by resizing, on whatever thread; None is the image."""
    image_size: int | None = None
    """Side that the images must have; None takes any."""

    def of_images(self, images: Tensor, outputs: Collection[str] = ("features",)) -> dict[str, Tensor]:
        """Of images (B, 3, S, S) uint8."""
        if self.prepare is not None:
            images = torch.stack([self.prepare(image) for image in images])
        return self.extract(images, outputs)


def requested(
    names: str, weights: Sequence[str] = (), *, resize: Resize = "auto", inception: Path | None = None
) -> list[FeatureRequest]:
    """What ``--features A,B,…`` asks for.

    :param weights: of timm's networks: ``FILE`` where there is one of them, else ``NAME=FILE``.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted or len(set(wanted)) < len(wanted):
        raise UsageError(f"--features {names}: give names or files, each once")
    of_timm = [name for name in wanted if name not in EXTRACTORS and not name.endswith(".safetensors")]
    files = {}
    for one in weights:
        name, _, file = one.partition("=") if one.partition("=")[0] in wanted else ("".join(of_timm[:1]), "", one)
        if name not in of_timm or (name != one.partition("=")[0] and len(of_timm) > 1):
            raise UsageError(f"--features-weights {one}: give NAME=FILE, of a timm model among --features")
        files[name] = file
    if inception and "inception" not in wanted:
        raise UsageError("--inception is the file of --features inception")
    if resize == "legacy-tf" and "inception" not in wanted:
        raise UsageError(f"--resize {resize} is Inception's way; it needs --features inception")
    return [
        FeatureRequest(
            features=name, features_weights=files.get(name),
            resize=resize if name == "inception" else "auto", inception=inception if name == "inception" else None,
        )
        for name in wanted
    ]  # fmt: skip


def open_features(request: FeatureRequest) -> FeatureExtractor:
    """The extractor that ``--features`` names: of the table, an RAE's file, or a timm model."""
    name = request.features
    if name in EXTRACTORS:
        return EXTRACTORS[name](request)
    if not name.endswith(".safetensors"):
        model = name.removeprefix("timm:")
        return timm_features(NAMED_SPACES.get(model, TimmSpace(model)), request.features_weights)
    from mfkit.autoencoders.rae import RAEFile

    return rae_features(RAEFile.open(Path(local_copy(name))))


def rae_features(file: "RAEFile") -> FeatureExtractor:
    """The mean over the patches of the standardised latents of an RAE."""
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
    return FeatureExtractor(extract, ("features",), conditions, mean_token, image_size=size)


def timm_features(space: TimmSpace, weights: str | None = None) -> FeatureExtractor:
    """What a network of timm pools, such as DINOv2's class token (FD-DINOv2, arXiv 2306.04675).

    :param weights: a local copy, or its place on the hub; None fetches the published ones.
    """
    from mfkit.autoencoders.timm_encoder import TIMM

    device, side = processes().device, space.padded or space.size
    encoder = TIMM.open_pooled(space.model, side, resolve(weights) if weights else None)
    network: Any = encoder.network.to(device).eval().requires_grad_(False)
    shift, scale = (torch.tensor(values, device=device).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    missing = side - space.size

    def pooled(images: Tensor) -> Tensor:
        inputs = F.pad((images - shift) / scale, (0, missing, 0, missing))
        found = network.forward_features(inputs).mean((2, 3)) if space.last_map else network(inputs)
        return found.flatten(1).float()

    @torch.no_grad()
    def extract(resized: Tensor, outputs: Collection[str]) -> dict[str, Tensor]:
        return {"features": pooled(resized.to(device) / 255).cpu()}

    def differentiable(images: Tensor) -> Tensor:
        return pooled(_antialiased_bicubic(images, space.size))

    digest = sha256()
    for value in network.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    conditions = {
        "features": f"{space.model}, " + ("mean of the last map" if space.last_map else "pooled"),
        "features_digest": f"weights-sha256:{digest.hexdigest()}",
        "resize": f"clean (PIL bicubic) to {space.size}" + (f", filled up to {side}" if missing else ""),
    }  # fmt: skip
    return FeatureExtractor(extract, ("features",), conditions, differentiable, _pil_bicubic(space.size))


def _inception(request: FeatureRequest) -> FeatureExtractor:
    """The 2,048 pool features of Inception V3.

    ``clean`` resizes with antialiasing before the network (arXiv 2104.11222); ``legacy-tf`` without, as ADM's
    evaluation and the original FID do.
    """
    from mfkit.evaluation.inception import OUTPUTS, SIZE, open_inception

    device, clean = processes().device, request.resize != "legacy-tf"
    network, file = open_inception(device, request.inception)

    @torch.no_grad()
    def extract(images: Tensor, outputs: Collection[str]) -> dict[str, Tensor]:
        found = network.evaluate(images.to(device).float(), outputs, resized=clean)
        return {name: value.flatten(1).float().cpu() for name, value in found.items()}

    def differentiable(images: Tensor) -> Tensor:
        pixels = 255 * (_antialiased_bicubic(images, SIZE) if clean else images)
        return network.evaluate(pixels, ["features"], resized=clean)["features"].float()

    conditions = {
        "features": "Inception V3 (2015-12-05), pool", "features_digest": file_digest(file),
        "resize": "clean" if clean else "legacy-tf",
    }  # fmt: skip
    return FeatureExtractor(extract, OUTPUTS, conditions, differentiable, _pil_bicubic(SIZE) if clean else None)


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


def _antialiased_bicubic(images: Tensor, size: int) -> Tensor:
    """What clean-fid's resize does, of images in [0, 1], with a gradient."""
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)


def _pil_bicubic(size: int) -> Callable[[Tensor], Tensor]:
    """clean-fid's resize of an image: Pillow's bicubic, per colour, not rounded. float32 in [0, 255]."""
    from cleanfid.resize import make_resizer

    resize = make_resizer("PIL", False, "bicubic", (size, size))

    def apply(image: Tensor) -> Tensor:
        return torch.from_numpy(resize(image.permute(1, 2, 0).numpy())).permute(2, 0, 1)

    return apply
