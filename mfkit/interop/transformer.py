"""A student as a component of a diffusers pipeline."""

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from mfkit.models.dit import AverageVelocityDiT, DiTConfig


class MeanFlowTransformer(ModelMixin, ConfigMixin):
    """The average velocity u(z, r, t, y). Its config has the sizes of the network."""

    @register_to_config
    def __init__(
        self, channels: int, side: int, num_classes: int, width: int, depth: int, heads: int, head_width: int,
        head_depth: int, head_heads: int, gated: bool = True, late_r: bool = False,
        auto_map: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        """:param auto_map: where diffusers' ``AutoModel`` finds this class."""
        super().__init__()
        sizes = DiTConfig(
            channels=channels, side=side, num_classes=num_classes, width=width, depth=depth, heads=heads,
            head_width=head_width, head_depth=head_depth, head_heads=head_heads, gated=gated, late_r=late_r,
        )  # fmt: skip
        self.network = AverageVelocityDiT(sizes)

    def forward(self, z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The average velocity over [r, t], so that z_r = z - (t - r) u.

        :param z: (B, C, H, W), noisy latents at time t; 0 is data, 1 is noise.
        :param r: (B,), the earlier times, in [0, t].
        :param t: (B,), times in [0, 1].
        :param y: (B,), class indices; the number of classes itself means "no label".
        :returns: (B, C, H, W).
        """
        return self.network(z, r, t, y)
