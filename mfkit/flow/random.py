"""Named random streams: a draw depends on the seed, the stage, the stream's name and the sample's number alone.

Batch size, number of processes and the other streams of a stage play no part, so a new stream moves no draw of another,
and a run goes on after an interruption without any random state being kept.
"""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_TO_UNIT = 2.0**-24
"""A float32 in [0, 1) holds 24 bits exactly."""


def stream_keys(seed: int, stream: str, samples: Sequence[int]) -> NDArray[np.uint64]:
    """(B,) keys, one per sample: values of the counter-based generator SplitMix64, whose start is seed and stream."""
    start = np.zeros(1, np.uint64)
    for word in (seed & _MASK, crc32(stream.encode())):
        start = _mix(start + np.uint64(word) + _GAMMA)
    return _mix(start + _GAMMA * (np.asarray(samples, np.uint64) + np.uint64(1)))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Draws:
    """The random draws of some samples in a stage.

    The stage is part of every stream, so that an image is not sampled from noise that a student was trained on.
    """

    def __init__(self, seed: int, stage: str, samples: Sequence[int], device: torch.device | str = "cpu") -> None:
        """:param samples: (B,) numbers of the samples, such as their positions in a training run."""
        self._seed, self._stage, self._samples, self._device = seed, stage, samples, device

    def uniform(self, name: str, count: int | None = None) -> Tensor:
        """Uniform draws in [0, 1), float32: (B,), or (B, count). The same on every device."""
        keys = stream_keys(self._seed, f"{self._stage}/{name}", self._samples)
        bits = _mix(keys[:, None] + _GAMMA * np.arange(1, (count or 1) + 1, dtype=np.uint64))
        values = torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) * np.float32(_TO_UNIT))
        return (values if count else values[:, 0]).to(self._device, non_blocking=True)

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """Standard normal draws (B, *shape), float32. The same on devices of one kind."""
        generator = torch.Generator(self._device)
        values = torch.empty(len(self._samples), *shape, device=self._device)
        for value, key in zip(values, stream_keys(self._seed, f"{self._stage}/{name}", self._samples), strict=True):
            value.normal_(generator=generator.manual_seed(int(key >> np.uint64(1))))
        return values
