"""The weights that a target is taken with: those in training, or a fast average of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mfkit.errors import UsageError
from mfkit.flow.objectives.base import Models
from mfkit.flow.objectives.interval import IntervalObjective, Points, evaluate
from mfkit.setting import setting

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class OwnTargetObjective(IntervalObjective):
    """A loss whose target is made of the student itself on the rows with r < t; v is asked for on the others alone."""

    own_target: ClassVar[bool] = True

    target_ema: float = setting(
        0.0, "Decay per step of the averaged weights that the target is taken with; 0 takes those in training.",
        metavar="D", min=0, max=1,
    )  # fmt: skip

    def initial_state(self, models: Models) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in _weights(models).items()} if self.target_ema else {}

    def after_step(self, models: Models) -> None:
        import torch

        weights = _weights(models)
        with torch.no_grad():
            for name, average in models.state.items():
                if type(weights[name].data) is not torch.Tensor:
                    raise UsageError("--target-ema keeps a second set of whole weights, which FSDP splits; use DDP")
                average.lerp_(weights[name].to(average.device), 1 - self.target_ema)

    def evaluate(self, models: Models, points: Points, *others: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See :func:`~mfkit.flow.objectives.interval.evaluate`; at the other r by the target's weights."""
        import torch

        if not self.target_ema:
            return evaluate(models, points, *others)
        z, t, y = (values[points.longer] for values in (points.z, points.t, points.y))
        target = self.target_network(models)
        with torch.no_grad():
            found = [target(z, r, t, y) for r in others]
        return models.network(points.z, points.r, points.t, points.y), found

    def target_network(self, models: Models) -> Callable[..., Tensor]:
        """u(z, r, t, y) for targets."""
        if not self.target_ema:
            return models.unwrapped
        from torch.func import functional_call

        network = _module(models)
        return lambda *inputs: functional_call(network, models.state, inputs)


def _module(models: Models) -> nn.Module:
    from torch import nn

    assert isinstance(models.unwrapped, nn.Module)
    return models.unwrapped


def _weights(models: Models) -> dict[str, nn.Parameter]:
    return {name: value for name, value in _module(models).named_parameters() if value.requires_grad}
