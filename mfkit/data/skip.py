"""What happens to samples and shards that cannot be read: an error, or, where the user says so, they are skipped."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from accelerate.utils import gather_object

from mfkit.config.settings import OnError
from mfkit.errors import InputError
from mfkit.runtime.distributed import processes

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_SHARE = 0.01
"""Of the samples that may be skipped."""
_MESSAGES = 3
"""How many are reported one by one."""


class SkipPolicy:
    """Which samples of a dataset could not be read. Used by several threads; each process has its own."""

    def __init__(self, on_error: OnError = "raise") -> None:
        self.skips = on_error == "skip"
        self._skipped: dict[Any, str] = {}
        """Why a sample was skipped, by its place."""
        self._cut: dict[str, int] = {}
        """Samples found in shards that are damaged."""
        self._whole: dict[str, int] = {}
        """Samples in the others."""
        self._total: int | None = None
        """Samples of the dataset, as far as that is known."""
        self._reported: set[object] = set()

    def read(self, place: object, read: Callable[[], T]) -> T | None:
        """What ``read`` gives, or None where the sample at a place is unreadable and skipped."""
        if place in self._skipped:
            return None
        try:
            return read()
        except InputError as error:
            self._raise_unless_skipping(error)
            self._skipped[place] = str(error)
            return None

    def add_shard(self, name: str, samples: int, error: InputError | None) -> None:
        """A shard has been read: to its end, or up to where it is damaged."""
        if error is None:
            self._whole[name] = samples
            return
        self._raise_unless_skipping(error)
        self._cut[name] = samples
        self._skipped[name] = str(error)

    def check(self, readable: int, *, so_far: bool = False) -> None:
        """Refuses to go on when more than :data:`MAX_SHARE` of the samples have been skipped.

        :param so_far: the dataset has more samples than these.
        :raises InputError: it names the first.
        """
        skipped = self.count()
        if not so_far:
            self._total = readable + skipped
        if skipped > MAX_SHARE * (readable + skipped):
            first = next(iter(self._skipped.values()))
            raise InputError(
                f"{skipped} of {readable + skipped} samples cannot be read, more than {MAX_SHARE:.0%}; first: {first}"
            )

    def count(self) -> int:
        """Samples skipped; of a damaged shard as many as it has fewer than the others have, at least one."""
        usual = max(self._whole.values(), default=0)
        return len(self._skipped) - len(self._cut) + sum(max(1, usual - found) for found in list(self._cut.values()))

    def among(self, indices: range) -> dict[int, str]:
        """Why samples with these indices were skipped."""
        return {index: self._skipped[index] for index in indices if index in self._skipped}

    def add(self, skipped: Mapping[int, str]) -> None:
        """Counts what another run or process skipped."""
        self._skipped.update(skipped)

    def sync(self, readable: int | None = None) -> None:
        """What any process skipped counts for all. All processes call it.

        :param readable: samples that could be read, where that is known better here.
        :raises InputError: too many were skipped.
        """
        if not self.skips:
            return
        totals = []
        for skipped, cut, whole, total in gather_object([(self._skipped, self._cut, self._whole, self._total)]):
            self._skipped |= skipped
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
                error.in_all_processes = True
                raise

    def report(self) -> None:
        """Logs what all processes skipped since the last report, and how many that was. All processes call it."""
        self.sync()
        new = [why for place, why in self._skipped.items() if place not in self._reported]
        self._reported |= self._skipped.keys()
        if new and processes().is_main_process:
            for why in new[:_MESSAGES]:
                logger.warning("skipped: %s", why)
            logger.warning("skipped %d unreadable samples", self.count())

    def _raise_unless_skipping(self, error: InputError) -> None:
        if not self.skips:
            raise error
