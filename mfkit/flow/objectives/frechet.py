"""Fréchet post-training: the distance between the moments of what the student makes and of real images is the loss.

Without a teacher and without real images while it trains (arXiv 2604.28190). What was trained on is no evidence of
quality: the student's file says which spaces these are, and ``fid`` repeats it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from mfkit.flow.objectives.base import (
    GRADIENT,
    OWN_ENCODER,
    Batch,
    Coupling,
    DataKind,
    Loss,
    Models,
    SpaceRequest,
    Stage,
)
from mfkit.flow.objectives.coupled import CoupledObjective, one_step
from mfkit.flow.views import VIEWS
from mfkit.setting import setting

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 1e-12
"""Of an eigenvalue, as a share of the trace: the slope of a root is infinite at 0."""


@dataclass(frozen=True, kw_only=True)
class Frechet(CoupledObjective):
    """sum over spaces of FD / sg(FD + eps), FD = |m - m'|^2 + tr(C + C' - 2 (C' C)^(1/2)), m' and C' of real images.

    m and C are those of a moving average, or of a queue, of which the newest part is this step's features with their
    gradient. Features are taken in float32, everything after them in float64.
    """

    heading: ClassVar[str] = "Fréchet distance"
    name: ClassVar[str] = "frechet"
    summary: ClassVar[str] = "Fréchet distance of moments (FD-loss, arXiv 2604.28190); besides what the features cost"
    stages: ClassVar[tuple[Stage, ...]] = ("bootstrap",)
    reads: ClassVar[DataKind | None] = None
    coupling: ClassVar[Coupling] = "step"

    space: tuple[str, ...] = setting(
        ("mean-token",),
        f"Where the distance is taken; repeatable. Of the latents {', '.join(VIEWS)}; of the decoded picture "
        f"{OWN_ENCODER} (the RAE's own encoder), inception, a timm model, or another RAE's file.",
        metavar="SPACE",
    )
    reference: tuple[str, ...] = setting(
        (),
        "For spaces of the picture: real images, or statistics that `fid --save-stats` wrote; repeatable, statistics "
        "for each space. Spaces of the latents need none.",
        metavar="IMAGES|NPZ",
    )
    resize: Literal["clean", "legacy-tf"] = setting("clean", "How pictures are resized before Inception.")
    inception: str | None = setting(None, "Local copy of Inception's weights.", metavar="FILE")
    features_weights: str | None = setting(None, "Local copy of the weights of a timm model.", metavar="FILE")
    moments: Literal["average", "queue"] = setting(
        "average", "How earlier steps count in the moments: by a moving average, or by a queue of their features."
    )
    moments_decay: float = setting(
        0.999, "Decay of the moving average.", metavar="D", min=0, max=1, only=("moments", "average")
    )
    moment_samples: int = setting(
        50_000,
        "Samples of the starting student that moments begin with; a queue holds as many.",
        metavar="N",
        min=2,
    )
    distance_eps: float = setting(0.01, "eps of the weight 1 / (FD + eps) of a space.", metavar="EPS", min=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        of_pictures = [space for space in self.space if space not in VIEWS]
        of_timm = [space for space in of_pictures if space not in (OWN_ENCODER, "inception")]
        if (self.inception or self.resize != "clean") and "inception" not in self.space:
            raise ValueError("--inception and --resize are of --space inception")
        if self.features_weights and len([space for space in of_timm if not space.endswith(".safetensors")]) != 1:
            raise ValueError("--features-weights are of one --space that is a timm model")
        if self.reference and not of_pictures:
            raise ValueError("--reference is of spaces of the picture; none is named")

    @property
    def spaces(self) -> SpaceRequest:
        return SpaceRequest(
            names=self.space, reference=self.reference, resize=self.resize, inception=self.inception,
            features_weights=self.features_weights,
        )  # fmt: skip

    @property
    def samples_at_start(self) -> int:
        return self.moment_samples

    def check_batch(self, batch_size: int) -> None:
        if self.moments == "queue" and batch_size > self.moment_samples:
            raise ValueError(f"--moment-samples {self.moment_samples} is less than a step's {batch_size} samples")

    @property
    def needs_latents(self) -> bool:
        return any(space in VIEWS for space in self.space)

    def forward_passes(self, stage: Stage) -> float:
        return GRADIENT

    def noise(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.draws.normal("noise", batch.latent_shape), batch.y

    def outputs(self, models: Models, z: Tensor, y: Tensor) -> dict[str, Tensor]:
        import torch

        assert models.features is not None
        x = one_step(models, z, y)
        with torch.autocast(x.device.type, enabled=False):
            return models.features.extract(x)

    def initial_state(self, models: Models) -> dict[str, Tensor]:
        import torch

        assert models.features is not None
        device, state = models.features.exact, {}
        for space, (vectors, dimensions) in models.features.sizes.items():
            for name, shape in _SHAPES.items():
                side = (dimensions,) * shape
                state[f"{space}.{name}"] = torch.zeros(side, dtype=torch.float64, device=device)
            if self.moments == "queue":
                state[f"{space}.queue"] = torch.zeros(self.moment_samples, vectors, dimensions, device=device)
                state[f"{space}.oldest"] = torch.zeros((), dtype=torch.int64)
        return state

    def begin(self, models: Models, batches: Iterable[Batch]) -> None:
        import torch

        assert models.features is not None
        own = {space: _of_space(models, space) for space in self.space}
        for batch in batches:
            with torch.no_grad():
                found = self.outputs(replace(models, network=models.unwrapped), *self.noise(batch))
            for space, state in own.items():
                features = found[space].to(models.features.exact)
                for total, part in zip((state["mean"], state["second"]), _sums(features.double()), strict=True):
                    total += part
                if self.moments == "queue":
                    state["queue"][list(batch.positions)] = features
        for space, state in own.items():
            count = self.samples_at_start * models.features.sizes[space][0]
            for name, divisor in (("mean", count), ("second", count), ("queue", 1)):
                if name in state:
                    state[name].copy_(models.total(state[name]) / divisor)
            with torch.autocast(models.features.exact.type, enabled=False):
                mean, covariance = models.features.reference(space)
            state["reference_mean"].copy_(mean)
            state["reference_root"].copy_(symmetric_root(covariance))

    def loss(self, models: Models, batch: Batch, outputs: dict[str, Tensor], rows: int) -> Loss:
        import torch

        distances = {}
        for space, features in outputs.items():
            with torch.autocast(features.device.type, enabled=False):
                distances[space] = self._distance(models, space, features).float().to(features.device)
        values = [distance / (distance.detach() + self.distance_eps) for distance in distances.values()]
        parts = {f"frechet.{space}": distance.detach() for space, distance in distances.items()}
        return Loss(torch.stack(values).sum(), torch.stack(list(parts.values())).mean(), parts)

    def _distance(self, models: Models, space: str, features: Tensor) -> Tensor:
        """The distance in a space, whose moments go on by this step's features."""
        import torch

        assert models.features is not None
        state, exact = _of_space(models, space), features.to(models.features.exact).double()
        every = models.gather(exact.detach())
        # Processes average their gradients, each of which is that of its own rows alone.
        world = len(every) // len(exact)
        first, second = (
            total + world * (part - part.detach()) for total, part in zip(_sums(every), _sums(exact), strict=True)
        )
        count = every.shape[0] * every.shape[1]
        if self.moments == "queue":
            mean, second = self._queued(state, every, first, second, count)
        else:
            mean = self.moments_decay * state["mean"] + (1 - self.moments_decay) * first / count
            second = self.moments_decay * state["second"] + (1 - self.moments_decay) * second / count
            state["mean"].copy_(mean.detach())
            state["second"].copy_(second.detach())
        covariance = second - torch.outer(mean, mean)
        return squared_distance(mean, covariance, state["reference_mean"], state["reference_root"])

    def _queued(
        self, state: dict[str, Tensor], every: Tensor, first: Tensor, second: Tensor, count: int
    ) -> tuple[Tensor, Tensor]:
        """Mean and second moment of the queue and this step's features, which then take the place of the oldest."""
        import torch

        new, held = len(every), self.moment_samples * every.shape[1]
        moments = [(held * state[name] + sums) / (held + count) for name, sums in (("mean", first), ("second", second))]
        places = (state["oldest"].to(every.device) + torch.arange(new, device=every.device)) % self.moment_samples
        gone = _sums(state["queue"][places].double())
        for name, added, removed in zip(("mean", "second"), (first, second), gone, strict=True):
            state[name] += (added.detach() - removed) / held
        state["queue"][places] = every.float()
        state["oldest"].copy_((state["oldest"] + new) % self.moment_samples)
        return moments[0], moments[1]


_SHAPES = {"mean": 1, "second": 2, "reference_mean": 1, "reference_root": 2}
"""Of what is kept of a space, its number of axes."""


def _of_space(models: Models, space: str) -> dict[str, Tensor]:
    """What is kept of a space, by name."""
    begin = f"{space}."
    return {name.removeprefix(begin): value for name, value in models.state.items() if name.startswith(begin)}


def _sums(features: Tensor) -> tuple[Tensor, Tensor]:
    """Of (B, M, D): sum (D,), and sum of outer products (D, D)."""
    vectors = features.flatten(0, 1)
    return vectors.sum(0), vectors.T @ vectors


def symmetric_root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix (D, D)."""
    import torch

    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def squared_distance(mean: Tensor, covariance: Tensor, reference_mean: Tensor, reference_root: Tensor) -> Tensor:
    """(), the Fréchet distance of moments to a reference's, of whose covariance R^2 it takes the root R.

    The trace of (R^2 C)^(1/2) is the sum of the roots of the eigenvalues of R C R, which is symmetric. It is NaN where
    that is not finite.
    """
    import torch

    inner = reference_root @ covariance @ reference_root
    if not inner.isfinite().all():
        return inner.sum() * torch.nan
    values = torch.linalg.eigvalsh((inner + inner.T) / 2)
    cross = values.clamp(min=_LEAST * float(inner.detach().trace())).sqrt().sum()
    gap = mean - reference_mean
    return gap @ gap + covariance.trace() + reference_root.square().sum() - 2 * cross
