"""What a device can do, and what a computation holds: the rate of its matrix products, the bytes of live tensors."""

import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mfkit.config.settings import PrecisionName
from mfkit.runtime.precision import evaluating


def seconds(computation: Callable[[], Any], device: torch.device) -> float:
    """How long a computation takes, the device's part included."""
    _wait(device)
    begin = time.perf_counter()
    computation()
    _wait(device)
    return time.perf_counter() - begin


def product_rate(precision: PrecisionName, device: torch.device) -> float:
    """FLOP/s of the fastest matrix product, measured: a square one, or, on a CPU, a 1x1 convolution by oneDNN."""
    size, tries = (8192, 10) if device.type == "cuda" else (2048, 5)
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    pixels, kernel = a.t().reshape(1, size, size, 1).contiguous(memory_format=torch.channels_last), b[:, :, None, None]
    ways: list[Callable[[], Tensor]] = [lambda: a @ b]
    if device.type == "cpu":
        ways.append(lambda: torch.nn.functional.conv2d(pixels, kernel))
    with evaluating(precision, device):
        fastest = min(seconds(way, device) for _ in range(tries) for way in ways)
    return 2 * size**3 / fastest


def peak_bytes(computation: Callable[[], Any]) -> int:
    """The most bytes of tensors made inside that were alive at one time, from operation to operation.

    What a kernel allocates for itself is not seen. Tensors that are there before do not count.
    """
    with _Live() as live:
        computation()
    return live.peak


class _Live(TorchDispatchMode):
    """Counts a storage from the operation that returns it until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                self._count(made.untyped_storage(), before)
        return result

    def _count(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        identity = storage._cdata
        if identity in self._known or identity in before:
            return
        size = storage.nbytes()
        self._known.add(identity)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._freed, identity, size)

    def _freed(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self._now -= size


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
