"""What every generator network is, whatever its architecture: a teacher of the velocity or a student of its average."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from mfkit.errors import UsageError

GeneratorKind = Literal["teacher", "student"]


class Generator(nn.Module):
    """A class-conditional network on latents."""

    kind: ClassVar[GeneratorKind]
    config: Any
    """Its sizes: a frozen dataclass of plain values, stored with its weights. It has ``num_classes`` and
    ``latent_shape``, (C, H, W)."""
    blocks: nn.ModuleList
    """The repeated blocks: the units of compilation, of activation checkpointing and of FSDP."""


class Teacher(Generator):
    """The velocity v(z, t, y) of the flow."""

    kind: ClassVar[GeneratorKind] = "teacher"

    def forward(self, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The velocity at z.

        :param z: (B, C, H, W), noisy latents.
        :param t: (B,), times in [0, 1]; 0 is data, 1 is noise.
        :param y: (B,), class indices; the number of classes itself means "no label".
        :returns: (B, C, H, W).
        """
        raise NotImplementedError


class Student(Generator):
    """The average velocity u(z, r, t, y)."""

    kind: ClassVar[GeneratorKind] = "student"

    late_r: bool = False
    """Whether r reaches the last blocks alone. Then ``forward`` takes two more arguments, ``rows`` (M,), indices, and
    ``others`` (K, M), other r of these rows, and returns u and what it is there, (K, M, C, H, W), without a gradient
    and without the other blocks."""

    @classmethod
    def from_teacher(cls, teacher: Any, config: Any = None) -> Self:
        """A student that starts as its teacher: u(z, r, t, y) = v(z, t, y) exactly, for every r.

        :param config: by default the teacher's.
        """
        raise NotImplementedError

    def forward(self, z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The average velocity over [r, t], so that z_r = z - (t - r) u.

        :param z: (B, C, H, W), noisy latents at time t.
        :param r: (B,), the earlier times, in [0, t].
        :param t: (B,), times in [0, 1]; 0 is data, 1 is noise.
        :param y: (B,), class indices; the number of classes itself means "no label".
        :returns: (B, C, H, W).
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Architecture:
    """A generator network as the table has it."""

    name: str
    """As its files say it."""
    config: type[Any]
    """See :attr:`Generator.config`."""
    teacher: type[Teacher]
    student: type[Student]
    sizes: Mapping[str, Mapping[str, int]]
    """Fields of the config by the names that ``--model`` takes."""

    def new_config(self, latent_shape: tuple[int, ...], num_classes: int, size: str) -> Any:
        """The config of a named size for latents of a shape (C, H, W).

        :raises UsageError: there is no such size, or the latents do not fit the network.
        """
        if size not in self.sizes:
            raise UsageError(f"--model {size}: {self.name} has {', '.join(self.sizes)}")
        channels, height, width = latent_shape
        if height != width:
            raise UsageError(f"{self.name} takes square latents, not {height} x {width}")
        return self.config(channels=channels, side=height, num_classes=num_classes, **self.sizes[size])

    def build(self, kind: GeneratorKind, config: Any) -> Generator:
        """A network with fresh weights."""
        return self.teacher(config) if kind == "teacher" else self.student(config)


def parameter_count(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
