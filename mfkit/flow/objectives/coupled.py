"""Losses of many rows together, such as a distance between distributions, in pieces that bound the memory.

The outputs of all rows are taken without a graph, the loss and its gradient by them, and then piece by piece the
outputs again, with the graph through which that gradient goes on to the weights (GradCache, arXiv 2101.06983). The
gradient is that of the whole, whatever the pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from mfkit.flow.objectives.base import Batch, Coupling, Loss, Models, Objective

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CoupledObjective(Objective):
    """A loss of what the student makes of noise in one evaluation, all rows together.

    Every row has its label: a row that is compared with a class must be of it.
    """

    coupling: ClassVar[Coupling] = "sample"
    drops_labels: ClassVar[bool] = False

    def noise(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Noise (R, C, H, W) and labels (R,) of the rows that have a gradient."""
        raise NotImplementedError

    def outputs(self, models: Models, z: Tensor, y: Tensor) -> dict[str, Tensor]:
        """What the loss takes of each row by itself, (R, ...) each, by name, differentiable."""
        raise NotImplementedError

    def loss(self, models: Models, batch: Batch, outputs: dict[str, Tensor], rows: int) -> Loss:
        """The loss of the outputs of all rows, differentiable by them.

        :param rows: that a forward pass may have.
        """
        raise NotImplementedError

    def __call__(self, models: Models, batch: Batch) -> Loss:
        return next(self.losses(models, batch, 1))

    def losses(self, models: Models, batch: Batch, pieces: int) -> Iterator[Loss]:
        import torch

        z, y = self.noise(batch)
        parts = list(zip(z.chunk(pieces), y.chunk(pieces), strict=True))
        if pieces == 1:
            first = self.outputs(models, z, y)
            found = [{name: value.detach() for name, value in first.items()}]
        else:
            without = replace(models, network=models.unwrapped)
            with torch.no_grad():
                found = [self.outputs(without, *part) for part in parts]
        leaves = {name: torch.cat([one[name] for one in found]).requires_grad_() for name in found[0]}
        whole = self.loss(models, batch, leaves, len(parts[0][0]))
        gradients = torch.autograd.grad(whole.value, list(leaves.values()))
        value = whole.value.detach()
        for number, part in enumerate(parts):
            outputs = first if pieces == 1 else self.outputs(models, *part)
            products = [
                (output * gradient.chunk(pieces)[number]).sum()
                for output, gradient in zip(outputs.values(), gradients, strict=True)
            ]
            along = pieces * torch.stack(products).sum()
            yield Loss(value + along - along.detach(), whole.mse, whole.parts)


def one_step(models: Models, z: Tensor, y: Tensor) -> Tensor:
    """z - u(z, 0, 1, y): the latents that the student makes of noise, float32."""
    times = z.new_zeros(len(z)), z.new_ones(len(z))
    return (z - models.network(z, *times, y)).float()
