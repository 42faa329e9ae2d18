"""The generator: a diffusion transformer with a wide, shallow head (DiT-DH, arXiv 2510.11690).

A deep, narrow encoder part reads the noisy latent and yields one condition per token; a wide head of two blocks
reads the latent again under these conditions. A teacher predicts the velocity v(z, t, y); a mean-flow student has a
second time embedding, fed with t - r, and predicts the average velocity u(z, r, t, y) (arXiv 2511.13019). With
``late_r`` that embedding reaches the head alone (Decoupled MeanFlow, arXiv 2510.24474): one pass of the encoder does
for several r.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfkit.models.generator import Architecture, Generator, Student, Teacher
from mfkit.models.layers import (
    Block,
    FinalLayer,
    LabelEmbedding,
    PixelEmbedding,
    RotaryPositions,
    TimeEmbedding,
    check_sizes,
    linear,
    sincos_positions,
)


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of a DiT-DH. Latents are (channels, side, side); a head's width must be a multiple of four."""

    channels: int
    side: int
    num_classes: int
    width: int
    depth: int
    heads: int
    head_width: int
    head_depth: int
    head_heads: int
    gated: bool = True
    """Blocks feed forward through SwiGLU, as the released models do; otherwise through a plain GELU layer."""
    late_r: bool = False
    """A student's r reaches its head alone."""

    def __post_init__(self) -> None:
        check_sizes(depth=self.depth + self.head_depth, side=self.side, width=max(self.width, self.head_width))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return (self.channels, self.side, self.side)


class _DiT(Generator):
    """What teacher and student share. Parameter names are those of the released RAE and MF-RAE checkpoints."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.s_embedder = PixelEmbedding(config.channels, config.width)
        self.x_embedder = PixelEmbedding(config.channels, config.head_width)
        self.pos_embed = nn.Parameter(sincos_positions(config.width, config.side), requires_grad=False)
        self.t_embedder = TimeEmbedding(config.width)
        self.y_embedder = LabelEmbedding(config.num_classes, config.width)
        self.enc_feat_rope = RotaryPositions(config.width // config.heads, config.side)
        self.dec_feat_rope = RotaryPositions(config.head_width // config.head_heads, config.side)
        self.blocks = nn.ModuleList(
            [Block(config.width, config.heads, gated=config.gated) for _ in range(config.depth)]
            + [Block(config.head_width, config.head_heads, gated=config.gated) for _ in range(config.head_depth)]
        )
        self.s_projector: nn.Module = (
            nn.Identity() if config.width == config.head_width else linear(config.width, config.head_width)
        )
        self.final_layer = FinalLayer(config.head_width, config.channels)

    def _encode(self, z: Tensor, time: Tensor, y: Tensor) -> Tensor:
        """(B, N, width), a condition per token."""
        condition = F.silu(time + self.y_embedder(y))[:, None]  # (B, 1, width)
        s = self.s_embedder(z) + self.pos_embed
        for block in self.blocks[: self.config.depth]:
            s = block(s, condition, self.enc_feat_rope)
        return s

    def _head(self, z: Tensor, s: Tensor, time: Tensor) -> Tensor:
        s = self.s_projector(F.silu(time[:, None] + s))
        x = self.x_embedder(z)
        for block in self.blocks[self.config.depth :]:
            x = block(x, s, self.dec_feat_rope)
        return self.final_layer(x, s).transpose(1, 2).reshape(z.shape)


class VelocityDiT(_DiT, Teacher):
    """The teacher: the velocity v(z, t, y) of the flow."""

    def forward(self, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        time = self.t_embedder(t)
        return self._head(z, self._encode(z, time, y), time)


class AverageVelocityDiT(_DiT, Student):
    """The student: the average velocity u(z, r, t, y); a second time embedding is fed with the interval t - r."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.r_embedder = TimeEmbedding(config.width, silent=True)
        self.late_r = config.late_r

    @classmethod
    def from_teacher(cls, teacher: VelocityDiT, config: DiTConfig | None = None) -> Self:
        student = cls(config or teacher.config)
        own = {name: value for name, value in student.state_dict().items() if name.startswith("r_embedder.")}
        student.load_state_dict(teacher.state_dict() | own)
        return student

    def forward(
        self, z: Tensor, r: Tensor, t: Tensor, y: Tensor, rows: Tensor | None = None, others: Tensor | None = None
    ) -> Any:
        time, interval = self.t_embedder(t), self.r_embedder(t - r)
        s = self._encode(z, time if self.late_r else time + interval, y)
        u = self._head(z, s, time + interval)
        if others is None:
            return u
        assert self.late_r
        with torch.no_grad():
            z, s, t, time = (values[rows] for values in (z, s, t, time))
            return u, torch.stack([self._head(z, s, time + self.r_embedder(t - other)) for other in others])


DIT_DH = Architecture(
    name="dit-dh",
    config=DiTConfig,
    teacher=VelocityDiT,
    student=AverageVelocityDiT,
    sizes={
        "tiny": dict(width=96, depth=4, heads=3, head_width=128, head_depth=2, head_heads=4),
        "S": dict(width=384, depth=12, heads=6, head_width=2048, head_depth=2, head_heads=16),
        "B": dict(width=768, depth=12, heads=12, head_width=2048, head_depth=2, head_heads=16),
        "L": dict(width=1024, depth=24, heads=16, head_width=2048, head_depth=2, head_heads=16),
        "XL": dict(width=1152, depth=28, heads=16, head_width=2048, head_depth=2, head_heads=16),
    },
)
"""The sizes of the RAE paper (arXiv 2510.11690); ``tiny`` is ours, for latents of a few thousand numbers."""
