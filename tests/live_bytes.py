"""What a computation holds: the bytes of live tensors, from operation to operation."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
