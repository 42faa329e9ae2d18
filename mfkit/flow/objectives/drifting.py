"""Drifting: the student's latents regress to where a field between them and the real ones moves them.

Without a teacher and without a second network (arXiv 2602.04770); in the latents of an RAE arXiv 2606.15553; other
fields arXiv 2605.11755.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from mfkit.flow.fields import FIELDS, Vectors, usual_distance
from mfkit.flow.objectives.base import GRADIENT, Batch, Loss, Models, Stage
from mfkit.flow.objectives.coupled import CoupledObjective, one_step
from mfkit.flow.views import VIEWS
from mfkit.setting import setting

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 1e-3
"""Of the scale of a view."""
_LEAST_SQUARE = 1e-8
"""Of a field's mean square, by whose root it is divided."""


@dataclass(frozen=True, kw_only=True)
class Drifting(CoupledObjective):
    """mean((x / s - sg(x / s + V))^2), x = z - u(z, 0, 1, y), summed over the views; s = usual distance / sqrt(D).

    V is the sum over the temperatures of the field of x among other generated and real latents of its class, each
    divided by its root mean square. So the loss is near the square of their number by construction, whatever the
    student: what falls is the mean squared field before that division, which the log shows. Scale and root mean square
    are those of one class and view.
    """

    heading: ClassVar[str] = "Drifting"
    name: ClassVar[str] = "drifting"
    summary: ClassVar[str] = "a field between generated and real latents of a class (arXiv 2602.04770)"
    stages: ClassVar[tuple[Stage, ...]] = ("bootstrap",)

    field: str = setting(
        "two-sided",
        "Field: two-sided (Drifting), token (Drift-RAE: one softmax and jitter), sinkhorn (W-Flow).",
        choices=FIELDS,
    )
    view: tuple[str, ...] = setting(
        ("token",), "What of a latent is compared; repeatable, the losses are summed.", choices=VIEWS
    )
    temperature: tuple[float, ...] = setting(
        (0.02, 0.05, 0.2),
        "Range of the field, a share of the usual distance; repeatable, the fields are summed.",
        metavar="TAU",
        min=1e-4,
    )
    generated: int = setting(
        64, "Latents of a class that are generated with a gradient; a step has --batch-size / this many classes.",
        metavar="N", min=2,
    )  # fmt: skip
    extra: int = setting(
        192, "Latents of a class that are generated without a gradient besides; they repel too.", metavar="N", min=0
    )
    real: int = setting(256, "Real latents of a class, which attract.", metavar="N", min=1)
    sinkhorn_iterations: float = setting(
        1, "Iterations of field sinkhorn; 0.5 is the KL field, 0 the MMD field.", metavar="N", min=0, max=100,
        only=("field", "sinkhorn"),
    )  # fmt: skip
    jitter: float = setting(1, "Jitter of field token, in temperatures.", metavar="J", min=0, only=("field", "token"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.field == "sinkhorn" and not self.extra:
            raise ValueError("field sinkhorn needs latents without a gradient: give --extra 1 or more")
        if self.sinkhorn_iterations != 0.5 and self.sinkhorn_iterations % 1:
            raise ValueError(f"sinkhorn_iterations is {self.sinkhorn_iterations:g}; give a whole number, or 0.5")

    @property
    def rows_per_sample(self) -> int:
        return self.generated

    @property
    def class_group(self) -> int:
        return self.real

    def forward_passes(self, stage: Stage) -> float:
        return GRADIENT + self.extra / self.generated

    def noise(self, batch: Batch) -> tuple[Tensor, Tensor]:
        z = batch.draws.normal("noise", (self.generated, *batch.latent_shape))
        return z.flatten(0, 1), batch.y.repeat_interleave(self.generated)

    def outputs(self, models: Models, z: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"x": one_step(models, z, y)}

    def loss(self, models: Models, batch: Batch, outputs: dict[str, Tensor], rows: int) -> Loss:
        import torch

        groups = len(batch.y)
        x = outputs["x"].unflatten(0, (groups, self.generated))
        others = self._others(models, batch, rows)
        values: list[Tensor] = []
        parts: dict[str, Tensor] = {}
        with torch.autocast(x.device.type, enabled=False):
            for view in self.view:
                sets = (_sets(view, latents) for latents in (x, others, batch.data["latent"]))
                value, squares = self._of_view(batch, view, *sets)
                values.append(value)
                parts |= squares
        return Loss(torch.stack(values).sum(), torch.stack(list(parts.values())).mean(), parts)

    def _of_view(
        self, batch: Batch, view: str, x: Tensor, others: Tensor, real: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of vectors (G, M, N, D) among others, and the mean squared fields by name."""
        import torch

        field, generated = FIELDS[self.field], x.detach()
        scale = usual_distance(generated, torch.cat([generated, others], 2), real, field.power)
        unit = (scale / x.shape[-1] ** 0.5).clamp(min=_LEAST)
        step, squares = torch.zeros_like(generated), {}
        for temperature in self.temperature:
            name = f"{view}.{temperature:g}"
            jitter = partial(self._jitter, batch, name, x.shape)
            vectors = Vectors(generated / unit, others / unit, real / unit, jitter, self.sinkhorn_iterations)
            moved = field.move(vectors, temperature)
            square = moved.square().mean((1, 2, 3), keepdim=True)
            step += moved / square.clamp(min=_LEAST_SQUARE).sqrt()
            squares[f"field.{name}"] = square.mean()
        return (x / unit - (generated / unit + step)).square().mean(), squares

    def _others(self, models: Models, batch: Batch, rows: int) -> Tensor:
        """Latents without a gradient: (G, extra, C, H, W)."""
        import torch

        z = batch.draws.normal("extra", (self.extra, *batch.latent_shape))
        if not self.extra:
            return z
        without, y = replace(models, network=models.unwrapped), batch.y.repeat_interleave(self.extra)
        with torch.no_grad():
            parts = zip(z.flatten(0, 1).split(rows), y.split(rows), strict=True)
            return torch.cat([one_step(without, *part) for part in parts]).view_as(z)

    def _jitter(self, batch: Batch, name: str, shape: tuple[int, ...]) -> Tensor:
        """(G, M, N, D), in a random direction as far as Laplace's law says."""
        _, sets, count, dimensions = shape
        direction = batch.draws.normal(f"direction.{name}", (sets, count, dimensions))
        radius = -(1 - batch.draws.uniform(f"radius.{name}", sets * count)).log().view(-1, sets, count, 1)
        return self.jitter * radius * direction / direction.norm(dim=-1, keepdim=True)


def _sets(view: str, latents: Tensor) -> Tensor:
    """(G, N, C, H, W) to (G, M, N, D): of each group and place, the vectors to compare."""
    return VIEWS[view](latents.flatten(0, 1)).unflatten(0, latents.shape[:2]).transpose(1, 2)
