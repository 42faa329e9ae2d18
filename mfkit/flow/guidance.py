"""Guidance of the teacher: what is made of its velocity before anyone integrates it or learns from it.

v0 + W (v - v0), where v0 is the teacher's own velocity without label (classifier-free, arXiv 2207.12598), or that of a
weaker teacher with the label (AutoGuidance, arXiv 2406.02507).

It is part of the velocity, so that solvers and objectives know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from mfkit.errors import UsageError
from mfkit.flow.times import expand_to
from mfkit.setting import Settings, setting

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-12
"""Of a velocity's norm, by which is divided."""

Velocity = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""(z (B, C, H, W), t (B,), y (B,)) -> v (B, C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Guidance(Settings):
    """The weight of guidance, in an interval of times (arXiv 2404.07724)."""

    heading: ClassVar[str] = "Guidance of the teacher"

    guidance: float = setting(
        1.0,
        "v0 + W (v - v0), v0 the velocity without label or that of --guide; twice the work where W is not 1.",
        metavar="W",
        min=0,
    )
    guidance_interval: tuple[float, float] = setting(
        (0.0, 1.0), "Times from A to B at which the teacher is guided; 0 is data, 1 is noise.", metavar="A B"
    )

    guidance_rule: Literal["constant", "ratio-aware"] = setting(
        "constant",
        "Whether W is the same for all samples, or falls to 1 with |v - v0| / |v0| (RAAG, arXiv 2508.03442).",
    )
    guidance_fall: float = setting(
        12.0, "How fast it falls: 1 + (W - 1) exp(-A |v - v0| / |v0|).", metavar="A", min=0,
        only=("guidance_rule", "ratio-aware"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        begin, end = self.guidance_interval
        if not 0 <= begin < end <= 1:
            raise ValueError(f"--guidance-interval {begin:g} {end:g}: give 0 <= A < B <= 1")
        if self.guidance == 1 and (begin, end) != (0, 1):
            raise ValueError("--guidance-interval needs --guidance")
        if self.guidance == 1 and self.guidance_rule != "constant":
            raise ValueError("--guidance-rule needs --guidance")

    def guided(
        self, velocity: Velocity, null_label: int, class_dropout: float | None, guide: Velocity | None = None
    ) -> Velocity:
        """The velocity under this rule.

        :param null_label: the index that stands for "no label".
        :param class_dropout: share of samples that the teacher was trained on without label; None if it is not known.
        :param guide: the weaker teacher's velocity, in the place of that without label.
        :raises UsageError: it was trained on none, so that it knows no velocity without label.
        """
        if self.guidance == 1:
            return velocity
        if class_dropout == 0 and guide is None:
            raise UsageError(
                "--guidance: this teacher was trained with --class-dropout 0 and has no velocity without label; "
                "train it with, for example, --class-dropout 0.1, or guide it by a weaker teacher, --guide FILE"
            )
        begin, end = self.guidance_interval
        always = (begin, end) == (0, 1)

        def guided(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
            with_label = velocity(z, t, y)
            inside = (t >= begin) & (t <= end)
            if not always and not inside.any():
                return with_label
            reference = guide(z, t, y) if guide else velocity(z, t, y.new_full(y.shape, null_label))
            difference = with_label - reference
            weight = (inside * (self.guidance - 1)).to(z.dtype)
            if self.guidance_rule == "ratio-aware":
                ratio = difference.flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1).clamp(min=_TINY)
                weight = weight * (-self.guidance_fall * ratio).exp()
            return with_label + expand_to(weight, z) * difference  # is v0 + W (v - v0) where W is inside

        return guided

    @property
    def conditions(self) -> dict[str, object] | None:
        """What samples say of it; None without guidance."""
        if self.guidance == 1:
            return None
        falling = {} if self.guidance_rule == "constant" else {"rule": self.guidance_rule, "fall": self.guidance_fall}
        return {"weight": self.guidance, "interval": list(self.guidance_interval)} | falling
