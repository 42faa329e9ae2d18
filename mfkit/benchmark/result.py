"""What was measured of a stage."""

from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Measured:
    """Some rounds of equal work, over all processes."""

    samples: int
    """A round."""
    seconds: list[float]
    """Of each round."""
    flops: float | None = None
    """A round; None where nothing is computed."""
    bytes_read: int | None = None
    """A round."""
    options: dict[str, Any] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """By the median round."""
        one = median(self.seconds)
        figures: dict[str, Any] = {
            "samples_per_second": self.samples / one, "seconds": one, "slowest": max(self.seconds),
            "fastest": min(self.seconds), "samples": self.samples,
        }  # fmt: skip
        if self.flops is not None:
            figures["flops_per_second"] = self.flops / one
        if self.bytes_read is not None:
            figures["bytes_per_second"] = self.bytes_read / one
        return figures | self.options
