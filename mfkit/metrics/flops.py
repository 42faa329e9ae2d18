"""Counting a network's work, by the operations it runs; no weights are needed."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mfkit.networks.dit import AverageVelocityDiT, DiTConfig, VelocityDiT
from mfkit.networks.rae import RAE, RAEConfig

RULES = {
    "macs_without_attention": "multiply-adds of all matrix products and convolutions, each counted as one; "
    "attention's two products left out (the rule of the MF-RAE paper)",
    "macs": "the same, with attention's two products",
    "flops": "a multiply-add counted as two, with attention's two products",
}


def generator_work(config: DiTConfig, kind: str) -> dict[str, float]:
    """10^9 operations of one evaluation of a teacher or student for one image, by rule."""
    with torch.device("meta"):
        network = VelocityDiT(config) if kind == "teacher" else AverageVelocityDiT(config)
        z = torch.zeros(1, config.channels, config.side, config.side)
        times, y = torch.zeros(1), torch.zeros(1, dtype=torch.long)
    return _count(lambda: network(z, *[times] * (1 if kind == "teacher" else 2), y))


def decoder_work(config: RAEConfig) -> dict[str, float]:
    """10^9 operations of decoding one image, by rule."""
    with torch.device("meta"):
        rae = RAE(config)
        features = torch.zeros(1, *config.latent_shape)
    return _count(lambda: rae.reconstruct(features))


def _count(evaluate: Callable[[], Any]) -> dict[str, float]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        evaluate()
    attention = sum(
        flops
        for operation, flops in counter.get_flop_counts()["Global"].items()
        if "attention" in str(operation) or "bmm" in str(operation)
    )
    total = counter.get_total_flops()
    return {
        "macs_without_attention": (total - attention) / 2e9,
        "macs": total / 2e9,
        "flops": total / 1e9,
    }
