"""Views of latents: what of a latent is compared when one set of latents is compared with another.

A view makes M vectors of a latent; the m-th vectors of all latents are compared with each other. To add one: a line in
:data:`VIEWS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def token(x: Tensor) -> Tensor:
    """Each token by itself: (B, C, H, W) to (B, H W, C)."""
    return x.flatten(2).transpose(1, 2)


def latent(x: Tensor) -> Tensor:
    """All numbers as one vector: (B, 1, C H W)."""
    return x.flatten(1).unsqueeze(1)


def mean_token(x: Tensor) -> Tensor:
    """The mean over all tokens: (B, 1, C)."""
    return x.mean((2, 3)).unsqueeze(1)


def pooled(x: Tensor, side: int) -> Tensor:
    """Means over ``side`` x ``side`` tokens: (B, M, C), M = ceil(H / side) ceil(W / side)."""
    import torch.nn.functional as F

    return token(F.avg_pool2d(x, side, ceil_mode=True))


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "token": token,
    "latent": latent,
    "mean-token": mean_token,
    "pooled-2": partial(pooled, side=2),
    "pooled-4": partial(pooled, side=4),
}
