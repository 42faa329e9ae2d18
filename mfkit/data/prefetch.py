"""Work done ahead of whoever needs it, by threads: reading, packing and the device need not wait for one another."""

import os
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import count
from typing import Any, TypeVar

import torch

from mfkit.runtime.distributed import available_cores

T = TypeVar("T")
U = TypeVar("U")

_END: Any = object()


def spare_threads() -> int:
    """Threads for packing images beside the one that drives the device: this process's share of the cores."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def ordered_map(function: Callable[[T], U], items: Iterable[T], threads: int) -> Generator[U]:
    """``function`` of each item, in their order, by so many threads; by none with 0.

    Twice as many items and one more are in work ahead of the one that was asked for. An error is raised in its place.
    """
    if not threads:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, initializer=_keep_to_one_core)
    pending: deque[Future[U]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * threads + 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def prefetch(items: Iterable[T]) -> Generator[T]:
    """The items, made by a thread of its own, three of them before they are asked for.

    An error of theirs is raised here, in its place. When this iterator is closed, the thread ends after its item.
    """
    iterator = iter(items)
    with closing(ordered_map(lambda _: next(iterator, _END), count(), 1)) as made:
        for item in made:
            if item is _END:
                return
            yield item


def in_background(consume: Callable[[Iterator[T]], U], items: Iterable[T]) -> U:
    """What ``consume`` makes of the items, in a thread of its own: the next items are made here meanwhile.

    An error of the items is raised in ``consume``, so that it cleans up, and then here; so is an error of its own.
    """
    ready: queue.Queue[T] = queue.Queue(2)
    error: BaseException | None = None

    def taken() -> Iterator[T]:
        while (item := ready.get()) is not _END:
            yield item
        if error is not None:
            raise error

    with ThreadPoolExecutor(1, initializer=_keep_to_one_core) as pool:
        result = pool.submit(consume, taken())

        def put(item: T) -> None:
            while not result.done():
                with suppress(queue.Full):
                    ready.put(item, timeout=0.1)
                    return

        try:
            for item in items:
                put(item)
                if result.done():
                    break
            put(_END)
        except BaseException as raised:  # a signal's too, while this waits
            error = raised
            put(_END)
        value = result.result()
    if error is not None:
        raise error
    return value


def _keep_to_one_core() -> None:
    """The setting is the thread's own: a second team of OpenMP threads would slow that of the main thread down."""
    torch.set_num_threads(1)
