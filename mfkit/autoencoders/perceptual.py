"""How far apart two pictures are to a frozen network: perceptual losses of a decoder, and LPIPS as a figure.

To add one: a function that opens it, and a line in :data:`PERCEPTUAL`.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfkit.artifacts.network_weights import build_for, load_weights, shapes_of
from mfkit.autoencoders.rae import RAE
from mfkit.errors import InputError, UsageError
from mfkit.formats.hub import local_copy, read_weights_file

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Pictures and their originals (B, 3, S, S) in [0, 1] to a distance of each, (B,), with a gradient."""

NONE = "none"


def open_perceptual(name: str, rae: RAE) -> Perceptual | None:
    """What ``--perceptual`` names: of the table, none, or a file of VGG-16's weights, for LPIPS."""
    if name == NONE:
        return None
    if name in PERCEPTUAL:
        return PERCEPTUAL[name](rae)
    file = Path(local_copy(name))
    if not file.is_file():
        raise InputError(f"--perceptual {name}: neither a file of weights nor {', '.join([*PERCEPTUAL, NONE])}")
    return lpips(rae.device, file)


class LPIPS(nn.Module):
    """LPIPS by VGG-16 (arXiv 1801.03924): weighted squares of differences between layers, normalised by place."""

    shift: Tensor
    scale: Tensor
    _TAPS = (3, 8, 15, 22, 29)
    """The last ReLU of each of VGG's stages, among torchvision's layers."""
    _WIDTHS = (64, 128, 256, 512, 512)

    def __init__(self) -> None:
        from torchvision.models import vgg16

        super().__init__()
        self.features = vgg16(weights=None).features
        self.weights = nn.ParameterList(torch.ones(width) for width in self._WIDTHS)
        # Of [-1, 1], to colours as ImageNet's are normalised.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, originals: Tensor) -> Tensor:
        total = images.new_zeros(len(images))
        x = torch.cat([images, originals])
        x = (2 * x - 1 - self.shift) / self.scale
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self._TAPS:
                one, other = (x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()).chunk(2)
                weights = self.weights[self._TAPS.index(number)].view(-1, 1, 1)
                total = total + ((one - other).square() * weights).sum(1).mean((1, 2))
        return total


def lpips(device: torch.device, file: Path | None = None) -> LPIPS:
    """LPIPS with published weights.

    :param file: VGG-16's, as torchvision has them; None fetches them.
    :raises UsageError: torchmetrics, which has the weights of the layers' differences, is not installed.
    """
    found = find_spec("torchmetrics")
    if found is None or found.origin is None:
        raise UsageError("LPIPS needs torchmetrics, which has its weights: pip install torchmetrics")
    layers = read_weights_file(Path(found.origin).parent / "functional/image/lpips_models/vgg.pth")
    weights = {f"weights.{number}": layers[f"lin{number}.model.1.weight"].flatten() for number in range(5)}
    vgg = {name: value for name, value in _vgg(file).items() if name.startswith("features.")}
    source = file or "VGG-16"
    network = build_for(LPIPS, shapes_of(vgg | weights), source)
    load_weights(network, vgg | weights, source)
    return network.to(device).eval().requires_grad_(False)


def _vgg(file: Path | None) -> dict[str, Any]:
    if file is not None:
        return dict(read_weights_file(file))
    from torchvision.models import VGG16_Weights

    try:
        return dict(VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True))
    except (URLError, OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the weights of VGG-16, for LPIPS, cannot be downloaded ({reason}); give a file of them"
        ) from error


def _own_encoder(rae: RAE) -> Perceptual:
    """The RAE's encoder: means over quarters of its layers of the squared distance of directions by place."""

    def distance(images: Tensor, originals: Tensor) -> Tensor:
        with torch.no_grad():
            real = rae.quarter_layers(originals)
        pairs = zip(rae.quarter_layers(images), real, strict=True)
        directions = [(F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1) for one, other in pairs]
        return torch.stack([of_layer.mean((1, 2)) for of_layer in directions]).mean(0)

    return distance


PERCEPTUAL: dict[str, Callable[[RAE], Perceptual]] = {
    "lpips": lambda rae: lpips(rae.device),
    "encoder": _own_encoder,
}
