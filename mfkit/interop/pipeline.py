"""A student and its decoder as a diffusers pipeline: what ``mfkit export`` writes, and what loads it again."""

from typing import Any

import torch
from diffusers import AutoencoderKL, ConfigMixin, DiffusionPipeline, FlowMapEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from mfkit.autoencoders.rae_decoder import RAELatentDecoder
from mfkit.autoencoders.vae import VAE
from mfkit.models.dit import AverageVelocityDiT, DiTConfig


class MeanFlowTransformer(ModelMixin, ConfigMixin):
    """The average velocity u(z, r, t, y). Its config has the fields of :class:`~mfkit.models.dit.DiTConfig`."""

    @register_to_config
    def __init__(
        self, channels: int, side: int, num_classes: int, width: int, depth: int, heads: int, head_width: int,
        head_depth: int, head_heads: int, gated: bool = True, late_r: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = AverageVelocityDiT(DiTConfig(**self.config))

    def forward(self, z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """See :meth:`mfkit.models.dit.AverageVelocityDiT.forward`."""
        return self.network(z, r, t, y)


class MeanFlowPipeline(DiffusionPipeline):
    """Images of given classes, from noise, in one evaluation of the transformer, or in a few.

    ``MeanFlowPipeline.from_pretrained(DIR)(class_labels=[207], num_inference_steps=1).images``
    """

    model_cpu_offload_seq = "transformer->decoder"

    def __init__(
        self,
        transformer: MeanFlowTransformer,
        decoder: RAELatentDecoder | AutoencoderKL,
        scheduler: FlowMapEulerDiscreteScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, decoder=decoder, scheduler=scheduler)
        self.image_processor = VaeImageProcessor(do_normalize=False)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | list[int],
        num_inference_steps: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """One image per label.

        :param class_labels: class indices; the number of classes itself is "no label".
        :param latents: noise (B, C, H, W) to start from; drawn with ``generator`` by default.
        :param output_type: ``pil``, ``np``, ``pt`` (images in [0, 1]) or ``latent``.
        """
        sizes = self.transformer.config
        labels = torch.as_tensor(class_labels).reshape(-1)
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be 1 or more, not {num_inference_steps}")
        if not len(labels) or labels.min() < 0 or labels.max() > sizes.num_classes:
            raise ValueError(f"class_labels must be in 0 to {sizes.num_classes}; {sizes.num_classes} is no label")
        device, dtype = self._execution_device, self.transformer.dtype
        labels = labels.to(device)
        shape = (len(labels), sizes.channels, sizes.side, sizes.side)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents are {tuple(latents.shape)}; expected: {shape}")
        z = latents.to(device, dtype)

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        times = self.scheduler.sigmas.to(torch.float32)
        for step, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            t, r = (times[place].expand(len(z)).to(device) for place in (step, step + 1))
            z = self.scheduler.step(self.transformer(z, r, t, labels), timestep, z).prev_sample
        if output_type != "latent":
            z = self._decoded(z)
            z = self.image_processor.postprocess(z, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=z) if return_dict else (z,)

    def _decoded(self, latents: Tensor) -> Tensor:
        if isinstance(self.decoder, AutoencoderKL):
            factor = 2 ** (len(self.decoder.config.block_out_channels) - 1)
            return VAE(self.decoder, image_size=factor * latents.shape[-1]).decode(latents)
        return self.decoder.decode(latents)
