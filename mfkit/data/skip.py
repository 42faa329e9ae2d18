"""Samples and shards that cannot be read: an error, or, where the user says so, left out, counted and told."""

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from accelerate.utils import gather_object

from mfkit.config.settings import OnBad
from mfkit.errors import InputError
from mfkit.runtime.distributed import processes

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
        self._total: int | None = None
        """Samples of the source, as far as that is known."""
        self._told: set[object] = set()

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

    def check(self, samples: int, *, so_far: bool = False) -> None:
        """Refuses to go on when more of so many samples than :data:`MOST` have been left out.

        :param samples: those that can be read; ``so_far``: the source has more of them.
        :raises InputError: it names the first.
        """
        lost = self.count()
        if not so_far:
            self._total = samples + lost
        if lost > MOST * (samples + lost):
            first = next(iter(self._samples.values()))
            raise InputError(f"{lost} of {samples + lost} samples cannot be read, more than {MOST:.0%}; first: {first}")

    def count(self) -> int:
        """Samples left out; of a damaged shard as many as it has fewer than the others have, at least one."""
        usual = max(self._whole.values(), default=0)
        return len(self._samples) - len(self._cut) + sum(max(1, usual - found) for found in list(self._cut.values()))

    def among(self, rows: range) -> dict[int, str]:
        """What was wrong with these rows of a source whose samples are placed by their number."""
        return {row: self._samples[row] for row in rows if row in self._samples}

    def add(self, samples: Mapping[int, str]) -> None:
        """Counts what another run or process left out."""
        for row, why in samples.items():
            self._samples[row] = why

    def agree(self, readable: int | None = None) -> None:
        """What any process left out counts for all. All processes call it.

        :param readable: samples that could be read, where that is known better here.
        :raises InputError: too much was left out.
        """
        if not self.skips:
            return
        totals = []
        for samples, cut, whole, total in gather_object([(self._samples, self._cut, self._whole, self._total)]):
            self._samples |= samples
            self._cut |= cut
            self._whole |= whole
            totals += [total] if total else []
        self._total = max(totals, default=None)
        if readable is None and self._total is not None:
            readable = self._total - self.count()
        if readable is not None:
            try:
                self.check(readable)
            except InputError as error:
                error.everywhere = True
                raise

    def report(self) -> None:
        """Tells what all processes left out since the last report, and how many it was. All processes call it."""
        self.agree()
        new = [why for place, why in self._samples.items() if place not in self._told]
        self._told |= self._samples.keys()
        if new and processes().is_main_process:
            for why in new[:_TOLD]:
                logger.warning("left out: %s", why)
            logger.warning("%d samples could not be read and were left out", self.count())

    def _refuse_unless_skipping(self, error: InputError) -> None:
        if not self.skips:
            raise error
