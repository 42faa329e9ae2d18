"""Samples and shards that cannot be read: an error, or, where the user says so, left out, counted and told."""

import logging
from collections.abc import Callable
from typing import TypeVar

from accelerate.utils import gather_object

from mfkit.errors import InputError
from mfkit.processes import processes
from mfkit.settings import OnBad

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST = 0.01
"""Share of the samples that may be left out."""
_TOLD = 3
"""How many are told one by one."""


class Damage:
    """What of a source could not be read. Used by several threads; each process has its own."""

    def __init__(self, on_bad: OnBad = "error") -> None:
        self.skips = on_bad == "skip"
        self._samples: dict[object, str] = {}
        """What was wrong with a sample, by its place."""
        self._cut: dict[str, int] = {}
        """Samples found in shards that are damaged as a whole."""
        self._whole: dict[str, int] = {}
        """Samples in the others."""

    def sample(self, place: object, read: Callable[[], T]) -> T | None:
        """What ``read`` gives, or None where the sample at a place is broken and may be left out."""
        if place in self._samples:
            return None
        try:
            return read()
        except InputError as error:
            self._refuse_unless_skipping(error)
            self._samples[place] = str(error)
            return None

    def shard(self, name: str, found: int, error: InputError | None) -> None:
        """A shard has been read: to its end, or up to where it is damaged."""
        if error is None:
            self._whole[name] = found
            return
        self._refuse_unless_skipping(error)
        self._cut[name] = found
        self._samples[name] = str(error)

    def check(self, samples: int) -> None:
        """Refuses to go on when more of so many samples than :data:`MOST` have been left out.

        :raises InputError: it names the first.
        """
        lost = self.count()
        if lost > MOST * (samples + lost):
            first = next(iter(self._samples.values()))
            raise InputError(f"{lost} of {samples + lost} samples cannot be read, more than {MOST:.0%}; first: {first}")

    def count(self) -> int:
        """Samples left out; of a damaged shard as many as it has fewer than the others have, at least one."""
        usual = max(self._whole.values(), default=0)
        return len(self._samples) - len(self._cut) + sum(max(1, usual - found) for found in self._cut.values())

    def report(self) -> None:
        """Tells what all processes left out, and how many it was. All processes call it."""
        parts = gather_object([(self._samples, self.count() - len(self._samples))])
        told = {place: why for samples, _ in parts for place, why in samples.items()}
        if told and processes().is_main_process:
            for why in list(told.values())[:_TOLD]:
                logger.warning("left out: %s", why)
            lost = len(told) + max(more for _, more in parts)
            logger.warning("%d samples could not be read and were left out", lost)

    def _refuse_unless_skipping(self, error: InputError) -> None:
        if not self.skips:
            raise error
