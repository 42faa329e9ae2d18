"""A teacher under a rule of guidance, with the weaker teacher that guides it if there is one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mfkit.artifacts.artifact import Artifact
from mfkit.data.latents import check_same_autoencoder
from mfkit.errors import InputError, UsageError
from mfkit.flow.guidance import Guidance, Velocity
from mfkit.models.files import GeneratorFile, open_generator
from mfkit.models.generator import Generator
from mfkit.runtime.blocks import compile_blocks


@dataclass(frozen=True)
class GuidedTeacher:
    """Whose velocity is asked for; a student's file has no guidance."""

    file: GeneratorFile
    rule: Guidance = field(default_factory=Guidance)
    guide: GeneratorFile | None = None
    """A weaker teacher, of the same latents, in the place of the velocity without label."""

    def __post_init__(self) -> None:
        """:raises UsageError: a guide and no weight, or guidance of a student.
        :raises InputError: the guide is of other latents.
        """
        if self.file.kind == "student" and (self.rule.guidance != 1 or self.guide):
            raise UsageError("guidance is for a teacher; a student has what it was distilled with")
        if self.guide is None:
            return
        if self.rule.guidance == 1:
            raise UsageError("--guide needs --guidance W")
        own, other = self.file, self.guide
        if (own.latent_shape, own.num_classes) != (other.latent_shape, other.num_classes):
            raise InputError(
                f"{other.path} is for latents {other.latent_shape} of {other.num_classes} classes; {own.path} for "
                f"{own.latent_shape} of {own.num_classes}"
            )
        check_same_autoencoder(other.artifact, own.artifact)

    def velocity(self, device: torch.device, *, compiled: bool = False) -> Velocity:
        """The guided velocity of frozen networks, without gradients.

        :raises UsageError: see :meth:`Guidance.guided`.
        """
        own = frozen_velocity(self.file.network, device, compiled=compiled)
        guide = frozen_velocity(self.guide.network, device, compiled=compiled) if self.guide else None
        return self.rule.guided(own, self.file.num_classes, self.file.description.class_dropout, guide)

    @property
    def inputs(self) -> dict[str, Artifact]:
        """What provenance knows of it."""
        return {"teacher": self.file.artifact} | self.guides

    @property
    def guides(self) -> dict[str, Artifact]:
        return {"guide": self.guide.artifact} if self.guide else {}

    @property
    def conditions(self) -> dict[str, Any] | None:
        """What samples say of its guidance; None without."""
        found = self.rule.conditions
        return found and found | ({"guide": self.guide.artifact.digest} if self.guide else {})


def guided_teacher(file: GeneratorFile, rule: Guidance, guide: Path | None) -> GuidedTeacher:
    """:param guide: file of the weaker teacher."""
    return GuidedTeacher(file, rule, open_generator(guide, "teacher") if guide else None)


def frozen_velocity(teacher: Generator, device: torch.device, *, compiled: bool = False) -> Velocity:
    """A teacher's velocity without gradients; the network is changed in place."""
    teacher.requires_grad_(False).to(device)
    if compiled:
        compile_blocks(teacher.blocks)
    return torch.no_grad()(teacher)
