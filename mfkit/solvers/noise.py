"""Random draws that depend on a seed and a row's number alone, not on batch size or number of processes."""

from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def row_seed(seed: int, purpose: str, row: int) -> int:
    """A well-mixed 63-bit seed for a row (rounds of SplitMix64)."""
    value = seed
    for word in (row, crc32(purpose.encode()), seed):
        value = (value + 0x9E3779B97F4A7C15 * (word + 1)) & _MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
        value ^= value >> 31
    return value >> 1


def draw_rows(
    seed: int,
    purpose: str,
    rows: Sequence[int],
    shape: Sequence[int],
    *,
    uniforms: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Uniform draws (B, uniforms) in [0, 1) and standard normal ones (B, *shape), one generator per row.

    The same seed, purpose and row give the same draws on devices of one kind. The purpose keeps the draws of one stage
    from being those of another: a picture must not be sampled from the noise that a student was trained on.
    """
    generator = torch.Generator(device)
    uniform = torch.empty(len(rows), uniforms, device=device)
    normal = torch.empty(len(rows), *shape, device=device)
    for i, row in enumerate(rows):
        generator.manual_seed(row_seed(seed, purpose, row))
        uniform[i].uniform_(generator=generator)
        normal[i].normal_(generator=generator)
    return uniform, normal
