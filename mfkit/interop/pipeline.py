"""A student and its decoder as a diffusers pipeline: what ``mfkit export`` writes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMapEulerDiscreteScheduler, ModelMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from mfkit.autoencoders.vae import decode_by_vae


class MeanFlowPipeline(DiffusionPipeline):
    """Images of given classes, from noise, in one evaluation of the transformer, or in a few; without guidance.

    ``pipeline(class_labels=["cat", 207], num_inference_steps=1).images``
    """

    model_cpu_offload_seq = "transformer->decoder"
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self, transformer: ModelMixin, decoder: ModelMixin, scheduler: FlowMapEulerDiscreteScheduler,
        id2label: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        """:param id2label: names of the classes by their index."""
        super().__init__()
        self.register_modules(transformer=transformer, decoder=decoder, scheduler=scheduler)
        self.register_to_config(id2label=id2label)
        self.image_processor = VaeImageProcessor(do_normalize=False)

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """Indices of classes by their names. :raises ValueError: no class has the name, or several have it."""
        indices = []
        for name in [label] if isinstance(label, str) else label:
            found = [int(index) for index, known in (self.config.id2label or {}).items() if known == name]
            if len(found) != 1:
                raise ValueError(f"{len(found)} classes are named {name!r}; id2label of model_index.json has the names")
            indices += found
        return indices

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list[int | str] | Tensor,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 1,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """One image per label.

        :param class_labels: class indices or names; the number of classes itself is "no label".
        :param guidance_scale: 1; a student has the guidance of its teacher in it, or none.
        :param generator: of the noise; one for all images, or one for each.
        :param latents: noise (B, C, H, W) to start from, instead of drawing it.
        :param output_type: ``pil``, ``np``, ``pt`` (images in [0, 1]) or ``latent``.
        :param callback_on_step_end: called as (pipeline, step, timestep, tensors) after each; it may return others.
        """
        sizes = self.transformer.config
        asked = class_labels.tolist() if isinstance(class_labels, Tensor) else class_labels
        asked = asked if isinstance(asked, list) else [asked]
        indices = [self.get_label_ids(one)[0] if isinstance(one, str) else int(one) for one in asked]
        if guidance_scale > 1:
            raise ValueError(
                f"guidance_scale {guidance_scale}: one evaluation has no second velocity to guide with; the student "
                "has what guidance its teacher had"
            )
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be 1 or more, not {num_inference_steps}")
        if not indices or min(indices) < 0 or max(indices) > sizes.num_classes:
            raise ValueError(f"class_labels must be in 0 to {sizes.num_classes}; {sizes.num_classes} is no label")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs: {unknown} are not {self._callback_tensor_inputs}")
        device, dtype = self._execution_device, self.transformer.dtype
        labels = torch.tensor(indices, device=device)
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
            if callback_on_step_end is not None:
                tensors = {"latents": z} if callback_on_step_end_tensor_inputs else {}
                z = callback_on_step_end(self, step, timestep, tensors).pop("latents", z)
        if output_type != "latent":
            by_vae = isinstance(self.decoder, AutoencoderKL)
            z = decode_by_vae(self.decoder, z) if by_vae else self.decoder.decode(z)
            z = self.image_processor.postprocess(z, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=z) if return_dict else (z,)
