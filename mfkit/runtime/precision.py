"""In which precision matrix products are computed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mfkit.config.settings import PrecisionName
from mfkit.errors import UsageError


@contextmanager
def matmul_precision(precision: PrecisionName, device: torch.device) -> Iterator[None]:
    """float32 products inside are taken in TF32 where that is the precision, and else exactly, convolutions too.

    PyTorch takes convolutions in TF32 unless it is turned off, and a difference quotient does not survive that.

    :raises UsageError: the device has no TF32.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision tf32 is for NVIDIA GPUs; this device is a {device.type}")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def autocast(precision: PrecisionName, device: torch.device) -> torch.autocast:
    """Products inside are taken in bfloat16 where that is the precision; weights and sums stay in float32."""
    # Before 2.10, weights that were cast without a gradient, as for a target, were used again where there is one.
    cached = torch.__version__ >= "2.10"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=cached)
