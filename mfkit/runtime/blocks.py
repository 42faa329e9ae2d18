"""How the repeated blocks of a network are run: compiled, or with their activations made again for the backward pass.

Both leave the names of the parameters as they are, and both work block by block, so that one block is compiled once
for all blocks of its shape.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """``torch.compile`` for each block, in place. The first pass of a shape takes a minute or so."""
    for block in blocks:
        block.compile(dynamic=False)


def checkpoint_activations(blocks: Iterable[nn.Module]) -> None:
    """Each block, in place, keeps its inputs alone and runs again in the backward pass: less memory, more work."""
    for block in blocks:
        block.__dict__["forward"] = partial(_checkpointed, block.forward)


def _checkpointed(forward: Callable[..., Any], *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False)
