"""Inversion: the teacher's ODE from latents back to their noise, stored as the trajectories that lead forth again."""

import logging
from typing import Any

import torch
from torch import Tensor

from mfkit.config.settings import TrajectorySettings
from mfkit.data.dataset import IndexedTars, read_batch
from mfkit.data.latents import LatentDataset, check_fit
from mfkit.errors import UsageError
from mfkit.flow.solvers import solve
from mfkit.inference.guided import GuidedTeacher
from mfkit.inference.output import Result
from mfkit.inference.trajectories import Trajectories

logger = logging.getLogger(__name__)

_CHECKED = 64
"""Latents that are led to noise and back, to tell how far the solver misses."""


class Inversion(Trajectories):
    """Solves from the first ``count`` latents, with their own labels."""

    def __init__(self, guided: GuidedTeacher, data: LatentDataset, count: int, settings: TrajectorySettings) -> None:
        if not isinstance(data.dataset, IndexedTars):
            raise UsageError("--from reads latents from a folder, not from a stream")
        check_fit(data, guided.file)
        super().__init__(guided, min(count, len(data.dataset)), settings)
        self._dataset, self.skips = data.dataset, data.dataset.skips
        self.inputs = {**self.inputs, "latents": data.artifact}
        self.resume_key = self.resume_key | {"from": data.artifact.digest}
        self._missed: list[Tensor] = []

    def start(self, indices: range) -> tuple[Tensor, Tensor]:
        columns: dict[str, Any] = read_batch(self._dataset, indices)
        return columns["latent"].float().to(self.device), columns["label"].to(self.device)

    def states(self, start: Tensor, labels: Tensor) -> Tensor:
        found = solve(lambda z, t: self.velocity(z, t, labels), start, self.times.flip(0), self.solver)
        return found.flip(0).transpose(0, 1)

    def _solve(self, part: tuple[int, range]) -> Result:
        result = super()._solve(part)
        if result.indices[0] < _CHECKED:
            noise = torch.from_numpy(result.values[:, 0]).float().to(self.device)
            again = super().states(noise, result.labels.to(self.device))[:, -1]
            latents, _ = self.start(part[1])
            self._missed.append((again - latents).square().mean(dim=(1, 2, 3)).cpu())
        return result

    def report_skipped(self) -> None:
        super().report_skipped()
        if self._missed:
            missed = torch.cat(self._missed)
            logger.warning(
                "to noise and back, %d latents miss themselves by %.3g in root mean square",
                len(missed), missed.mean().sqrt(),
            )  # fmt: skip
