"""What was measured of a stage."""

from statistics import median
from typing import Any


def figures(
    samples: int, seconds: list[float], *, flops: float | None = None, bytes_read: int | None = None, **options: Any
) -> dict[str, Any]:
    """Rates by the median of some rounds of equal work, over all processes, and the options of the stage.

    :param samples: of a round; ``flops`` and ``bytes_read`` likewise, where there are any. :param seconds: of each
        round.
    """
    one = median(seconds)
    rates: dict[str, Any] = {
        "samples_per_second": samples / one, "seconds": one, "slowest": max(seconds), "fastest": min(seconds),
        "samples": samples,
    }  # fmt: skip
    if flops is not None:
        rates["flops_per_second"] = flops / one
    if bytes_read is not None:
        rates["bytes_per_second"] = bytes_read / one
    return rates | options
