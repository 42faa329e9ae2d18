"""Fresh weights that depend on the seed alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global random state is that of ``seed`` within the block, and as before after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
