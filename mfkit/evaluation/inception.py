"""Inception V3 of 2015-12-05, by whose features FID is defined: from a state dict, or from clean-fid's TorchScript."""

import os
import zipfile
from collections.abc import Collection
from functools import reduce
from pathlib import Path
from typing import Any, Protocol
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception as torchvision

from mfkit.artifacts.artifact import file_digest
from mfkit.artifacts.network_weights import build_for, load_weights, shapes_of
from mfkit.errors import InputError
from mfkit.formats.hub import read_weights_file

SIZE = 299
"""Side of its input."""
OUTPUTS = ("features", "probabilities", "spatial")
"""2,048 pool features; 1,008 probabilities of classes, without bias; (17, 17, 7), the first channels of
``mixed_6/conv`` by place and then by channel, as ADM's evaluation takes them for sFID."""
_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)  # fmt: skip
_DIGEST = "sha256:6726825d"
"""How the digest of that file begins, as its name says."""


class Inception(Protocol):
    """The network, whichever file it is from."""

    def evaluate(self, pixels: Tensor, outputs: Collection[str], *, resized: bool) -> dict[str, Tensor]:
        """Those of :data:`OUTPUTS` that are asked for, (B, ...), with a gradient.

        :param pixels: (B, 3, S, S) float in [0, 255], :param resized: to 299; else the network resizes as TensorFlow 1
            does, without antialiasing.
        """


def open_inception(device: torch.device, file: Path | None) -> tuple[Inception, Path]:
    """The network on a device, frozen, and its file.

    :param file: a local copy of ``pt_inception-2015-12-05-6726825d.pth`` (tensors alone) or of
        ``inception-2015-12-05.pt`` (TorchScript); None fetches the first.
    """
    file = file or _download()
    network: Inception = _Scripted(file, device) if _is_script(file) else _from_tensors(file, device)
    return network, file


def _download() -> Path:
    """The state dict, in the user's own cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mfkit"
    file = folder / _URL.rpartition("/")[2]
    if not file.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(_URL, str(file), hash_prefix=_DIGEST.rpartition(":")[2], progress=False)
        except (URLError, OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"Inception's weights cannot be downloaded ({reason}); pass --inception FILE, or other --features"
            ) from error
    if not file_digest(file).startswith(_DIGEST):
        raise InputError(f"{file} is not the published file, or not all of it: remove it")
    return file


def _is_script(file: Path) -> bool:
    """Whether an archive of torch holds code."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


class _Scripted:
    """The TorchScript file that clean-fid uses (arXiv 2104.11222)."""

    _BEFORE_MIXED_6 = (
        "conv", "conv_1", "conv_2", "pool0", "conv_3", "conv_4", "pool1", "mixed", *(f"mixed_{i}" for i in range(1, 6))
    )  # fmt: skip

    def __init__(self, file: Path, device: torch.device) -> None:
        try:
            self._network: Any = torch.jit.load(file, map_location=device).eval()
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"Inception's weights cannot be loaded from {file} ({reason})") from error
        if not hasattr(self._network, "layers"):
            raise InputError(f"{file} is TorchScript of another network than inception-2015-12-05.pt")

    def evaluate(self, pixels: Tensor, outputs: Collection[str], *, resized: bool) -> dict[str, Tensor]:
        found = {}
        if "features" in outputs and resized:
            found["features"] = self._network.layers(_normalised(pixels)).flatten(1)
        elif "features" in outputs:
            found["features"] = self._network(pixels, return_features=True).flatten(1)
        if "probabilities" in outputs:
            found["probabilities"] = self._network(pixels, no_output_bias=True)
        if "spatial" in outputs:
            layers = self._network.layers
            before = _normalised(pixels if resized else tf1_bilinear(pixels, SIZE))
            maps = reduce(lambda value, name: getattr(layers, name)(value), self._BEFORE_MIXED_6, before)
            found["spatial"] = layers.mixed_6.conv(maps)[:, :7].movedim(1, -1)
        return found


def _normalised(pixels: Tensor) -> Tensor:
    return (pixels - 128) / 128


def tf1_bilinear(images: Tensor, size: int) -> Tensor:
    """TensorFlow 1's bilinear resize of (B, C, H, W), as in Inception's own graph: pixel i is taken at i * H / size."""
    for axis in (2, 3):
        length = images.shape[axis]
        place = torch.arange(size, device=images.device) * (length / size)
        below = place.long()
        share = (place - below).view((1, 1, -1, 1) if axis == 2 else (-1,))
        above = (below + 1).clamp(max=length - 1)
        images = images.index_select(axis, below).lerp(images.index_select(axis, above), share)
    return images


def _chain(x: Tensor, *layers: nn.Module) -> Tensor:
    return reduce(lambda value, layer: layer(value), layers, x)


def _mean_of_inside(x: Tensor) -> Tensor:
    """TensorFlow's average of 3 x 3 neighbours, which does not count those beyond the border."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _BlockA(torchvision.InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [
            self.branch1x1(x),
            _chain(x, self.branch5x5_1, self.branch5x5_2),
            _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3),
            self.branch_pool(_mean_of_inside(x)),
        ]


class _BlockC(torchvision.InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        doubled = (getattr(self, f"branch7x7dbl_{number}") for number in range(1, 6))
        return [
            self.branch1x1(x),
            _chain(x, self.branch7x7_1, self.branch7x7_2, self.branch7x7_3),
            _chain(x, *doubled),
            self.branch_pool(_mean_of_inside(x)),
        ]


class _BlockE(torchvision.InceptionE):
    def _forward(self, x: Tensor) -> list[Tensor]:
        one, two = self.branch3x3_1(x), _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2)
        return [
            self.branch1x1(x),
            self.branch3x3_2a(one), self.branch3x3_2b(one),
            self.branch3x3dbl_3a(two), self.branch3x3dbl_3b(two),
            self.branch_pool(self._pool(x)),
        ]  # fmt: skip

    def _pool(self, x: Tensor) -> Tensor:
        return _mean_of_inside(x)


class _LastBlockE(_BlockE):
    def _pool(self, x: Tensor) -> Tensor:
        """The published graph has the largest here, not the mean."""
        return F.max_pool2d(x, 3, stride=1, padding=1)


class _Network(nn.Module):
    """torchvision's blocks under the names of the published state dict, pooling as TensorFlow's graph does."""

    def __init__(self) -> None:
        super().__init__()
        conv = torchvision.BasicConv2d
        self.Conv2d_1a_3x3 = conv(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = conv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = conv(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = conv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = conv(80, 192, kernel_size=3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _BlockA(192, 32), _BlockA(256, 64), _BlockA(288, 64)
        self.Mixed_6a = torchvision.InceptionB(288)
        self.Mixed_6b, self.Mixed_6c = _BlockC(768, 128), _BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = _BlockC(768, 160), _BlockC(768, 192)
        self.Mixed_7a = torchvision.InceptionD(768)
        self.Mixed_7b, self.Mixed_7c = _BlockE(1280), _LastBlockE(2048)
        self.fc = nn.Linear(2048, 1008)

    def evaluate(self, pixels: Tensor, outputs: Collection[str], *, resized: bool) -> dict[str, Tensor]:
        x = _normalised(pixels if resized else tf1_bilinear(pixels, SIZE))
        x = F.max_pool2d(_chain(x, self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3), 3, stride=2)
        x = F.max_pool2d(_chain(x, self.Conv2d_3b_1x1, self.Conv2d_4a_3x3), 3, stride=2)
        x = _chain(x, self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c)
        found = {}
        if "spatial" in outputs:
            found["spatial"] = self.Mixed_6d.branch1x1(x)[:, :7].movedim(1, -1)
        if {"features", "probabilities"} & set(outputs):
            x = _chain(x, self.Mixed_6d, self.Mixed_6e, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c)
            features = x.mean((2, 3))
            found |= {"features": features, "probabilities": (features @ self.fc.weight.T).softmax(1)}
        return {name: value for name, value in found.items() if name in outputs}


def _from_tensors(file: Path, device: torch.device) -> _Network:
    if not file.exists():
        raise InputError(f"{file} does not exist")
    held = read_weights_file(file)
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise InputError(f"{file} is no state dict of Inception")
    with torch.device("meta"):
        outline = _Network()
    # Files of old versions of torch do not count batches; nor does a frozen network.
    counts = {name: torch.tensor(0) for name in outline.state_dict() if name.endswith("num_batches_tracked")}
    network = build_for(_Network, shapes_of(counts | held), file)
    load_weights(network, counts | held, file)
    return network.to(device).eval().requires_grad_(False)
