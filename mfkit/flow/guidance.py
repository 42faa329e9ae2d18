"""Guidance of the teacher: what is made of its velocity before anyone integrates it or learns from it.

It is part of the velocity, so that solvers and objectives know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mfkit.setting import Settings

if TYPE_CHECKING:
    from torch import Tensor

Velocity = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""(z (B, C, H, W), t (B,), y (B,)) -> v (B, C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Guidance(Settings):
    """The rule by which a teacher is guided."""

    heading: ClassVar[str] = "Guidance of the teacher"

    def guided(self, velocity: Velocity, null_label: int, class_dropout: float | None) -> Velocity:
        """The velocity under this rule.

        :param null_label: the index that stands for "no label".
        :param class_dropout: share of samples that the teacher was trained on without label; None if it is not known.
        """
        return velocity

    @property
    def conditions(self) -> dict[str, object] | None:
        """What samples say of it; None without guidance."""
        return None
