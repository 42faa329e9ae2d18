"""Progress bars."""

import logging
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

from mfkit.runtime.distributed import processes

T = TypeVar("T")

logger = logging.getLogger(__name__)


def progress(items: Iterable[T], **bar: Any) -> Iterable[T]:
    """The items with a bar of tqdm's, where the main process is at a terminal and not told to be quiet."""
    shown = processes().is_main_process and sys.stderr.isatty() and logger.isEnabledFor(logging.WARNING)
    return tqdm(items, disable=not shown, **bar)
