"""Consistency along the teacher's trajectories: its states for the first leg, the student's map for the second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mfkit.flow.objectives.base import GRADIENT, Batch, Models, Stage
from mfkit.flow.objectives.cmt import CMT
from mfkit.flow.times import expand_to

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CTM(CMT):
    """u(z_t, r, t, y) against the chord from z_t to z_s - (s - r) sg u(z_s, r, s, y), for three states r <= s < t.

    Where s = r, which is as likely as any other state, it is CMT's chord: that ties the student to the teacher. This is
    the soft consistency of consistency trajectory models, in latents, without their GAN.
    """

    heading: ClassVar[str] = "Consistency mid-training"
    name: ClassVar[str] = "ctm"
    summary: ClassVar[str] = "a stored leg, then u's own map (soft consistency of CTM, arXiv 2310.02279)"

    def forward_passes(self, stage: Stage) -> float:
        return GRADIENT + 1

    def arrived(self, models: Models, batch: Batch, sample: Tensor, later: Tensor, earlier: Tensor) -> Tensor:
        import torch

        states, times = batch.data["states"], batch.data["times"]
        place = batch.draws.uniform("middle-state", self.pairs).flatten()
        middle = later + 1 + (place * (earlier - later)).long()
        z, s, r = states[sample, middle].float(), times[sample, middle], times[sample, earlier]
        with torch.no_grad():
            return z - expand_to(s - r, z) * models.unwrapped(z, r, s, batch.y[sample])
