"""From noise to latents by a generator: a teacher's ODE is solved, a student's flow map is taken in a few steps."""

from typing import Any, Protocol

import torch
from torch import Tensor

from mfkit.config.settings import SampleSettings
from mfkit.errors import UsageError
from mfkit.flow.guidance import Guidance
from mfkit.flow.solvers import SOLVERS, TIME_GRIDS, few_step_sample, solve_ode, time_grid
from mfkit.models.generator import Generator, Student, Teacher

_TEACHER_NFE = 50
"""As in the papers; of a solver that cannot take just so many, the most below."""


class Sampler(Protocol):
    """Noise (B, C, H, W) and labels (B,) to latents (B, C, H, W), and the conditions of what it makes."""

    nfe: int
    conditions: dict[str, Any]

    def __call__(self, noise: Tensor, labels: Tensor) -> Tensor: ...


class OdeSampler:
    """The end of the teacher's ODE."""

    def __init__(
        self, network: Teacher, settings: SampleSettings, time_shift: float, guidance: Guidance,
        class_dropout: float | None,
    ) -> None:  # fmt: skip
        """:param time_shift: the teacher's own, where the settings name none."""
        self._solver = settings.solver or "euler"
        solver = SOLVERS[self._solver]
        most = next(steps for steps in range(_TEACHER_NFE, 0, -1) if solver.evaluations(steps) <= _TEACHER_NFE)
        self._steps = solver.steps(settings.nfe, self._solver) if settings.nfe else most
        self.nfe = solver.evaluations(self._steps)
        self._grid, self._shift = settings.time_grid, _shift(settings, time_shift)
        self._velocity = guidance.guided(network, network.config.num_classes, class_dropout)
        self.conditions = {
            "nfe": self.nfe, "solver": self._solver, "time_grid": self._grid, "time_shift": self._shift,
            "guidance": guidance.conditions,
        }  # fmt: skip

    @torch.no_grad()
    def __call__(self, noise: Tensor, labels: Tensor) -> Tensor:
        times = time_grid(self._steps, self._shift, noise.device, name=self._grid)
        return solve_ode(lambda z, t: self._velocity(z, t, labels), noise, times, self._solver)[-1]


class FlowMapSampler:
    """Steps of the student's flow map, one evaluation each. The grid is shifted only where that is asked for."""

    def __init__(
        self, network: Student, settings: SampleSettings, time_shift: float, guidance: Guidance,
        class_dropout: float | None,
    ) -> None:  # fmt: skip
        if settings.solver is not None:
            raise UsageError("--solver is for a teacher's ODE; a student takes steps of its flow map")
        if guidance.conditions:
            raise UsageError("guidance is for a teacher; a student has what it was distilled with")
        self._network, self.nfe = network, settings.nfe or 1
        self._grid, self._shift = settings.time_grid, _shift(settings, 1.0)
        self.conditions = {
            "nfe": self.nfe, "solver": "flow-map", "time_grid": self._grid, "time_shift": self._shift, "guidance": None
        }  # fmt: skip

    @torch.no_grad()
    def __call__(self, noise: Tensor, labels: Tensor) -> Tensor:
        times = time_grid(self.nfe, self._shift, noise.device, name=self._grid)
        return few_step_sample(lambda z, r, t: self._network(z, r, t, labels), noise, times)


def _shift(settings: SampleSettings, own: float) -> float:
    """The shift of the grid of times: ``own`` where the settings name none, 1 where the grid takes none."""
    if TIME_GRIDS[settings.time_grid].takes_shift:
        return settings.time_shift or own
    if settings.time_shift:
        raise UsageError(f"--time-shift does not move --time-grid {settings.time_grid}")
    return 1.0


SAMPLERS: dict[str, Any] = {"teacher": OdeSampler, "student": FlowMapSampler}
"""By the kind of generator."""


def sampler_of(
    network: Generator, settings: SampleSettings, time_shift: float, guidance: Guidance | None = None,
    class_dropout: float | None = None,
) -> Sampler:  # fmt: skip
    """The sampler of a generator.

    :param time_shift: the generator's own. :param class_dropout: see :meth:`Guidance.guided`.
    """
    return SAMPLERS[network.kind](network, settings, time_shift, guidance or Guidance(), class_dropout)
