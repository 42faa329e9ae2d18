"""import: weights that others released, as files that describe themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mfkit.errors import InputError, UsageError
from mfkit.files import diffusers_folder, weights
from mfkit.files.artifact import Artifact, file_digest, open_artifact, provenance
from mfkit.files.atomic import claim
from mfkit.files.foreign import HUB, local, read_document
from mfkit.networks.rae import IMAGENET_MEAN, IMAGENET_STD, RAE, VARIANCE_FLOOR
from mfkit.networks.released import (
    decoder_config,
    diffusers_decoder_names,
    generator_config,
    recognise,
    state_dict,
)
from mfkit.networks.transformers_names import feed_forward_width
from mfkit.settings import PresetName
from mfkit.solvers.times import time_shift
from mfkit.stages.encoders import assemble, open_encoder, patch_size, timm_encoder

_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2": ("vit_base_patch14_reg4_dinov2", {}),
    "siglip2": ("vit_base_patch16_siglip_256", {}),
    "mae": ("vit_base_patch16_224", {"no_embed_class": True}),
}
"""The timm model, and its arguments, of each ``encoder_type`` of diffusers' AutoencoderRAE."""
_NORMS = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_FOLDER_SIZES = (
    "encoder_hidden_size", "encoder_num_hidden_layers", "encoder_patch_size", "encoder_input_size", "patch_size",
    "decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size",
)  # fmt: skip
_HEAD = 64
"""Width of an attention head in all of them."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """What to read beside the weights, and how; None where the user gave nothing."""

    weights: Literal["ema", "model"] | None = None
    preset: PresetName | None = None
    rae: Path | None = None
    time_shift: float | None = None
    stats: str | None = None
    encoder: str | None = None
    encoder_weights: str | None = None
    decoder_heads: int | None = None

    def refuse(self, what: str, *names: str) -> None:
        """UsageError for options that say nothing of what was found."""
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]
        if given:
            raise UsageError(f"{', '.join(given)}: of no use for {what}")


def import_weights(source: str, output: Path, request: Import, *, overwrite: bool) -> str:
    """Writes the network in ``source`` to ``output``.

    :param source: a ``.pt`` or safetensors file of a DiT-DH or of an RAE decoder, or the folder of an
        ``AutoencoderRAE`` that diffusers saved; on this machine, or on the hub (``hf://``).
    :returns: the line for standard output.
    """
    path = local(source, folder=source.startswith(HUB) and not Path(source).suffix)
    claim(output, overwrite=overwrite, suffix=".safetensors", inputs=[path])
    if path.is_dir():
        request.refuse(
            f"an {diffusers_folder.RAE} folder", "weights", "rae", "time_shift", "stats", "encoder", "encoder_weights"
        )
        rae, inputs = _from_diffusers(path)
        return _save_rae(rae, output, request, inputs)
    tensors = state_dict(read_document(path), request.weights, path)
    holding = recognise(tensors, path)
    if holding == "statistics":
        raise InputError(f"{path} holds latent statistics; give it with --stats, beside a decoder")
    if holding == "decoder":
        rae, inputs = _from_parts(path, tensors, request)
        return _save_rae(rae, output, request, inputs)
    request.refuse(f"a {holding}", "stats", "encoder", "encoder_weights", "decoder_heads")
    config = generator_config(tensors, path)
    network = weights.build(holding, vars(config))
    weights.load_weights(network, tensors, path)
    shift = request.time_shift or time_shift(config.channels, config.side, config.side)
    inputs = {"weights": _foreign(path, "weights")}
    if request.rae:
        inputs["rae"] = open_artifact(request.rae, kinds=("rae", "vae"))
    description = {"time_shift": shift, "classes": [str(label) for label in range(config.classes)]}
    _save(network, holding, output, description, request.preset, inputs)
    return str(output)


def _from_parts(path: Path, tensors: dict[str, Tensor], request: Import) -> tuple[RAE, dict[str, Artifact]]:
    """A released decoder with the statistics and the encoder that it was made for."""
    request.refuse("an RAE decoder", "rae", "time_shift")
    if not request.stats or not request.encoder:
        raise UsageError(f"{path} holds an RAE decoder: give its latents' --stats and its --encoder")
    sizes = decoder_config(tensors, request.decoder_heads, path)
    encoder_size = sizes["side"] * patch_size(request.encoder, {})
    encoder = open_encoder(request.encoder, encoder_size, request.encoder_weights)
    if encoder.latent_shape() != (sizes["channels"], sizes["side"], sizes["side"]):
        raise InputError(
            f"{path} decodes {sizes['channels']} x {sizes['side']} x {sizes['side']}; {request.encoder} gives "
            f"{' x '.join(map(str, encoder.latent_shape()))}"
        )
    rae = assemble(encoder, sizes)
    weights.load_weights(rae.decoder, diffusers_decoder_names(tensors), path)
    stats = local(request.stats)
    _set_statistics(rae, state_dict(read_document(stats), None, stats), stats)
    inputs = {"decoder": _foreign(path, "weights"), "stats": _foreign(stats, "statistics")}
    return rae, inputs | ({"encoder": encoder.source} if encoder.source else {})


def _set_statistics(rae: RAE, tensors: dict[str, Tensor], path: Path) -> None:
    unknown = tensors.keys() - {"mean", "var"}
    if unknown or "var" not in tensors:
        raise InputError(f"{path} holds {', '.join(tensors)}; expected: the latents' mean and var")
    for name, buffer in (("mean", rae.latent_mean), ("var", rae.latent_var)):
        if name not in tensors:
            continue  # latents that were not centred
        value = tensors[name]
        try:
            buffer.copy_(value.reshape(value.shape[-3:]).expand_as(buffer))
        except RuntimeError as error:
            raise InputError(
                f"{path}: {name} is {tuple(value.shape)}; the latents are {tuple(buffer.shape)}"
            ) from error


def _from_diffusers(folder: Path) -> tuple[RAE, dict[str, Artifact]]:
    """An RAE from the folder of a saved AutoencoderRAE."""
    config, file = diffusers_folder.open_folder(folder, diffusers_folder.RAE)
    tensors = weights.read_tensors(file)
    if config.get("encoder_type") not in _ENCODERS:
        raise InputError(f"{folder} has an encoder of type {config.get('encoder_type')}; known: {', '.join(_ENCODERS)}")
    lacking = [name for name in _FOLDER_SIZES if not isinstance(config.get(name), int)]
    if lacking:
        raise InputError(f"{folder}/config.json lacks {', '.join(lacking)}")
    held = {part: _part(tensors, part) for part in ("encoder.", "decoder.")}
    name, arguments = _ENCODERS[config["encoder_type"]]
    width = config["encoder_hidden_size"]
    arguments = arguments | {
        "embed_dim": width, "depth": config["encoder_num_hidden_layers"], "num_heads": width // _HEAD,
        "patch_size": config["encoder_patch_size"], "mlp_ratio": feed_forward_width(held["encoder."]) / width,
    }  # fmt: skip
    encoder = timm_encoder(name, arguments, config["encoder_input_size"], file, held["encoder."])
    mean, std = (tuple(config.get(f"encoder_norm_{name}") or default) for name, default in _NORMS.items())
    encoder = replace(encoder, mean=mean, std=std)
    channels, side, _ = encoder.latent_shape()
    rae = assemble(encoder, {
        "image_size": side * config["patch_size"], "channels": channels, "side": side,
        "decoder_width": config["decoder_hidden_size"], "decoder_depth": config["decoder_num_hidden_layers"],
        "decoder_heads": config["decoder_num_attention_heads"], "decoder_hidden": config["decoder_intermediate_size"],
    })  # fmt: skip
    positions = {"decoder_pos_embed": rae.decoder.state_dict()["decoder_pos_embed"]}  # diffusers makes them anew
    weights.load_weights(rae.decoder, positions | held["decoder."], file)
    scale = tensors.get("_latents_std", torch.ones(1)).double() + VARIANCE_FLOOR
    if config.get("scaling_factor", 1.0) != 1.0:
        scale = scale / config["scaling_factor"]
    # diffusers divides by std + floor, we by sqrt(var + floor): a variance that makes them the same.
    rae.latent_var.copy_(_spread(scale.square() - VARIANCE_FLOOR, rae.latent_var))
    rae.latent_mean.copy_(_spread(tensors.get("_latents_mean", torch.zeros(1)), rae.latent_mean))
    return rae, {"weights": _foreign(file, "weights")}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _spread(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(value.shape[-3:]).expand_as(like)


def _save_rae(rae: RAE, output: Path, request: Import, inputs: dict[str, Artifact]) -> str:
    _save(rae, "rae", output, {"classes": []}, request.preset, inputs)
    return str(output)


def _save(
    network: Any, kind: str, output: Path, config: dict[str, Any], preset: PresetName | None,
    inputs: dict[str, Artifact],
) -> None:  # fmt: skip
    described = config | ({"preset": preset} if preset else {})
    weights.save(output, network, kind, described, provenance(output.parent, inputs, seed=None))


def _foreign(path: Path, kind: str) -> Artifact:
    return Artifact(path, kind, {}, {}, content_digest=file_digest(path))
