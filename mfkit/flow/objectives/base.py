"""What an objective is: a frozen dataclass whose fields are its settings and whose call is the loss.

It says which data it reads, what it costs, and what it keeps between steps. The command line, the training, the cost
plan and the checkpoints know no more of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

from mfkit.flow.times import shift_times
from mfkit.setting import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from mfkit.flow.random import Draws

Stage = Literal["train-teacher", "midtrain", "distill", "bootstrap", "train-mean-flow"]
"""The commands that train a generator."""

DataKind = Literal["latents", "trajectories"]
"""What a batch holds: ``latent`` (B, C, H, W); or ``states`` (B, S + 1, C, H, W) and falling ``times`` (B, S + 1)."""

Coupling = Literal["none", "sample", "step"]
"""Which rows a loss takes together: each alone, those of a sample, all of a step."""

GRADIENT = 3
"""Forward passes that an evaluation with gradients is worth: the backward pass is two."""


class Loss(NamedTuple):
    """A loss to descend, and the unweighted error to read."""

    value: Tensor
    """(), what is differentiated."""
    mse: Tensor
    """(), mean squared error per element, or what else falls where the student learns; without a gradient."""
    parts: Mapping[str, Tensor] = MappingProxyType({})
    """() each, what else the log shows, by name; the same names in every step."""


@dataclass(frozen=True, kw_only=True)
class SpaceRequest:
    """Feature spaces that an objective wants."""

    names: Sequence[str]
    """Of views of a latent, or of features of the picture."""
    reference: Sequence[str]
    """Real images, or statistics of them, for features of the picture."""
    resize: Literal["clean", "legacy-tf"]
    """Before Inception."""
    inception: str | None
    """File of Inception's weights."""
    features_weights: str | None
    """File of a timm model's weights."""


OWN_ENCODER = "rae"
"""The space of the encoder that the latents are from."""


@dataclass(frozen=True)
class Features:
    """Feature spaces of latents, and the moments of real images there."""

    extract: Callable[[Tensor], dict[str, Tensor]]
    """Latents (B, C, H, W) to (B, M, D) in each space, M vectors of each latent, by its name; differentiable."""
    sizes: Mapping[str, tuple[int, int]]
    """M and D of each."""
    reference: Callable[[str], tuple[Tensor, Tensor]]
    """Mean (D,) and covariance (D, D) in a space, float64, measured when they are asked for. All processes call it."""
    exact: torch.device
    """Where sums are taken in float64."""


def _alone(value: Tensor) -> Tensor:
    """What all processes have together where there is one."""
    return value


@dataclass(frozen=True)
class Models:
    """What an objective may evaluate."""

    network: Callable[..., Tensor]
    """In its data-parallel wrapper, with gradients: u(z, r, t, y) of a student, v(z, t, y) of a teacher."""
    unwrapped: Callable[..., Tensor]
    """The same network without the wrapper, for evaluations without gradients."""
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    """The teacher's v(z, t, y), without gradients; None where there is no teacher."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """What :meth:`Objective.initial_state` gave, changed in place by the steps since; it is in the checkpoint."""
    features: Features | None = None
    """Of the objective's ``spaces``."""
    gather: Callable[[Tensor], Tensor] = _alone
    """Rows of all processes, which have as many each, in the order of ranks; without a gradient."""
    total: Callable[[Tensor], Tensor] = _alone
    """The sum over all processes; without a gradient."""


@dataclass(frozen=True)
class Batch:
    """The samples of one forward pass."""

    data: dict[str, Tensor]
    """The columns of :data:`DataKind`: latents in float32, states as they are stored."""
    y: Tensor
    """(B,), class indices, some of them already replaced by "no label"."""
    positions: Sequence[int]
    """(B,), the samples' places in the run's order."""
    progress: Tensor
    """(B,), how far the run is at each sample, in [0, 1)."""
    draws: Draws
    """Random streams of these samples."""
    time_shift: float
    latent_shape: tuple[int, ...]
    """(C, H, W)."""

    def shifted_times(self, name: str, count: int | None = None) -> Tensor:
        """Uniform draws of the stream ``name``, shifted towards noise: (B,), or (B, count)."""
        return shift_times(self.draws.uniform(name, count), self.time_shift)


@dataclass(frozen=True, kw_only=True)
class Objective(Settings):
    """A loss for the training of a generator."""

    name: ClassVar[str]
    """As ``--objective`` takes it."""
    summary: ClassVar[str]
    """One line for the help, with the paper."""
    stages: ClassVar[tuple[Stage, ...]]
    """The commands that offer it."""
    reads: ClassVar[DataKind | None] = "latents"
    """None for class indices alone."""
    variant_of: ClassVar[str | None] = None
    """The objective that this one is, with other defaults."""
    experimental: ClassVar[bool] = False
    """Whether nobody has shown that it works at ImageNet's size."""
    coupling: ClassVar[Coupling] = "none"
    drops_labels: ClassVar[bool] = True
    """Whether some rows may be trained without their label."""

    @property
    def rows_per_sample(self) -> int:
        """Rows of the network that a sample of the data becomes."""
        return 1

    @property
    def class_group(self) -> int:
        """Latents of one class that are read together, as one sample; 0 reads them one by one, of any class."""
        return 0

    def forward_passes(self, stage: Stage) -> float:
        """What a row costs, in forward passes of the network, the teacher's included."""
        raise NotImplementedError

    def resolved(self, precision: str) -> Self:
        """The objective with what is ``auto`` decided for a precision of matrix products."""
        return self

    @property
    def spaces(self) -> SpaceRequest | None:
        """Feature spaces whose distances it descends: they say nothing more of its quality."""
        return None

    @property
    def needs_latents(self) -> bool:
        """Whether real latents are looked at, in its steps or before them."""
        return True

    @property
    def samples_at_start(self) -> int:
        """Samples of the starting network that :meth:`begin` sees."""
        return 0

    def check_stage(self, stage: Stage) -> None:
        """:raises ValueError: a setting asks for what there is none of in this stage, such as a teacher."""

    def check_batch(self, batch_size: int) -> None:
        """:raises ValueError: a step cannot have so many rows."""

    def initial_state(self, models: Models) -> dict[str, Tensor]:
        """Tensors that it keeps between steps, by name; of the same shapes in every process."""
        return {}

    def begin(self, models: Models, batches: Iterable[Batch]) -> None:
        """Fills ``models.state`` where a run begins, not where it goes on.

        :param batches: together ``samples_at_start`` samples without data, of which each process has its share.
        """

    def after_step(self, models: Models) -> None:
        """Changes ``models.state`` after a step of the optimiser."""

    def losses(self, models: Models, batch: Batch, pieces: int) -> Iterator[Loss]:
        """The loss of a batch in pieces, whose mean it is; there is one, unless the rows are coupled."""
        yield self(models, batch)

    def __call__(self, models: Models, batch: Batch) -> Loss:
        """The loss of a batch. It draws from ``batch.draws`` alone, so that a resumed run repeats it."""
        raise NotImplementedError


def mean_squared(error: Tensor) -> Loss:
    """The plain loss: the mean of the squared error over all elements."""
    value = error.square().mean()
    return Loss(value, value.detach())


def adaptive_mean_squared(
    error: Tensor, norm_p: float, norm_eps: float, *, weight: Tensor | None = None, share: Tensor | None = None
) -> Loss:
    """Mean over rows of w ||e||^2 / p / sg(||e||^2 / p^2 + eps)^norm_p (MeanFlow, arXiv 2505.13447).

    ||e||^2 is the sum over elements.

    :param weight: w, (B,); 1 where there is none.
    :param share: p, (B,), of the residual that ``error`` is; 1 where there is none. Its gradient is that of e / p.
    """
    squared = error.square().flatten(1)
    total = squared.sum(1)
    if share is None:
        adaptive = (total.detach() + norm_eps) ** -norm_p
    else:
        adaptive = (total.detach() / share.square() + norm_eps) ** -norm_p / share
    return Loss(((adaptive if weight is None else weight * adaptive) * total).mean(), squared.mean().detach())
