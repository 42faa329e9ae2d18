"""Work done ahead of whoever needs it, by threads: reading, packing and the device need not wait for one another."""

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch

from mfkit.runtime.distributed import available_cores

T = TypeVar("T")
U = TypeVar("U")


def spare_threads() -> int:
    """Threads for packing images beside the one that drives the device: this process's share of the cores."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def prefetch(items: Iterable[T], depth: int = 2) -> Generator[T]:
    """The items, made by a thread of its own, at most ``depth`` of them before they are asked for.

    An error of theirs is raised here, in its place. When this iterator is closed, the thread ends after its item.
    """
    buffer = _Buffer[T](depth)

    def make() -> None:
        _keep_to_one_core()
        buffer.fill(items)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        yield from buffer
    finally:
        buffer.stopped.set()
        thread.join()


def in_background(consume: Callable[[Iterator[T]], U], items: Iterable[T], depth: int = 2) -> U:
    """What ``consume`` makes of the items, in a thread of its own: the next items are made here meanwhile.

    An error of the items is raised in ``consume``, so that it cleans up, and then here; so is an error of its own.
    """
    buffer = _Buffer[T](depth)
    with ThreadPoolExecutor(1, initializer=_keep_to_one_core) as pool:
        result = pool.submit(_until_stopped, consume, buffer)
        buffer.fill(items)
        return result.result()


def _until_stopped(consume: Callable[[Iterator[T]], U], buffer: "_Buffer[T]") -> U:
    try:
        return consume(iter(buffer))
    finally:
        buffer.stopped.set()


class _Buffer(Generic[T]):
    """Items on their way from one thread to another, at most so many."""

    def __init__(self, depth: int) -> None:
        self._ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
        self.stopped = threading.Event()
        """No one takes items any more."""

    def fill(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                self._put("item", item)
                if self.stopped.is_set():
                    return
            self._put("end")
        except BaseException as error:  # raised again by whoever takes the items
            self._put("error", error)

    def _put(self, kind: str, value: Any = None) -> None:
        while not self.stopped.is_set():
            try:
                self._ready.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                continue

    def __iter__(self) -> Iterator[T]:
        while True:
            kind, value = self._ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value


def _keep_to_one_core() -> None:
    """The setting is the thread's own: a second team of OpenMP threads would slow that of the main thread down."""
    torch.set_num_threads(1)


def ordered_map(function: Callable[[T], U], items: Iterable[T], threads: int) -> Generator[U]:
    """``function`` of each item, in their order, by so many threads and twice as many items ahead; by none with 0."""
    if not threads:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, initializer=_keep_to_one_core)
    pending: deque[Future[U]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
