"""What a metric is: a name, what it needs to see of the images, and what it computes of two sets of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from mfkit.evaluation.image_set import ImageSet


class Metric(ABC):
    """A figure of generated images against real ones. Its file imports nothing heavy before it computes."""

    name: ClassVar[str]
    """Of its option."""
    help: ClassVar[str]
    needs: ClassVar[Mapping[str, str]]
    """What is kept, :data:`~mfkit.evaluation.reducers.REDUCERS`, of which output of the feature extractor:
    ``features``, ``probabilities``, …; or of the ``pixels`` themselves."""
    samples_alone: ClassVar[bool] = False
    """Whether it does not look at the reference."""

    @abstractmethod
    def compute(self, samples: ImageSet, reference: ImageSet) -> dict[str, Any]:
        """The figures by their names in the result."""
