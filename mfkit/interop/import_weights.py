"""import: weights that others released, as files that describe themselves."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mfkit.artifacts.artifact import Artifact, record_provenance
from mfkit.artifacts.atomic import exclusive_output
from mfkit.artifacts.network_weights import build_for, load_weights, shapes_of
from mfkit.artifacts.safetensors_files import read_tensors
from mfkit.autoencoders.encoders import open_encoder
from mfkit.autoencoders.files import ROLE, open_autoencoder
from mfkit.autoencoders.rae import RAE, VARIANCE_FLOOR, assemble, save_rae
from mfkit.autoencoders.timm_encoder import TIMM
from mfkit.config.presets import PresetName
from mfkit.errors import InputError, UsageError, decoding_errors
from mfkit.flow.times import default_time_shift
from mfkit.formats import diffusers_folder
from mfkit.formats.hub import HUB, WEIGHT_SUFFIXES, read_weights_file, resolve
from mfkit.formats.released import (
    decoder_config,
    detect_format,
    diffusers_decoder_names,
    generator_config,
    some_names,
    state_dict,
)
from mfkit.formats.transformers_vit import feed_forward_width
from mfkit.models.dit import DIT_DH
from mfkit.models.files import save_generator
from mfkit.models.generator import Generator

_AUTOENCODER_RAE = "AutoencoderRAE"
_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2": ("vit_base_patch14_reg4_dinov2", {}),
    "siglip2": ("vit_base_patch16_siglip_256", {}),
    "mae": ("vit_base_patch16_224", {"no_embed_class": True}),
}
"""The timm model, and its arguments, of each ``encoder_type`` of diffusers' AutoencoderRAE."""
_FOLDER_BUFFERS = ("encoder_mean", "encoder_std", "_latents_mean", "_latents_std")
_FOLDER_SIZES = (
    "encoder_hidden_size", "encoder_num_hidden_layers", "encoder_patch_size", "encoder_input_size", "patch_size",
    "decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size",
)  # fmt: skip
_HEAD_WIDTH = 64
"""Of an attention head in all of them."""
_PUBLISHED_CLASS_DROPOUT = 0.1
"""Of the released DiT-DH, teachers and students."""


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
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


@dataclass(frozen=True)
class _Imported:
    """A network, and what its file is to say."""

    network: RAE | Generator
    inputs: dict[str, Artifact]
    config: dict[str, Any] = field(default_factory=dict)


def import_weights(source: str, output: Path, request: ImportRequest, *, overwrite: bool) -> str:
    """Writes the network in ``source`` to ``output``.

    :param source: a ``.pt`` or safetensors file of a DiT-DH or of an RAE decoder, or the folder of an
        ``AutoencoderRAE`` that diffusers saved; on this machine, or on the hub (``hf://``).
    :returns: the line for standard output.
    """
    path = resolve(source, folder=source.startswith(HUB) and not source.endswith(WEIGHT_SUFFIXES))
    with exclusive_output(output, overwrite=overwrite, suffix=".safetensors", inputs=[path]):
        imported = _from_diffusers(path, request) if path.is_dir() else _from_file(path, request)
        config = imported.config | ({"preset": request.preset} if request.preset else {})
        given = {name: value for name, value in asdict(request).items() if value is not None}
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
        provenance = record_provenance(output.parent, imported.inputs, seed=None, settings=settings)
        if isinstance(imported.network, RAE):
            save_rae(output, imported.network, config, provenance)
        else:
            save_generator(output, imported.network, DIT_DH.name, config, provenance)
    return str(output)


def _from_file(path: Path, request: ImportRequest) -> _Imported:
    tensors = state_dict(read_weights_file(path), request.weights, path)
    kind = detect_format(tensors, path)
    if kind == "statistics":
        raise InputError(f"{path} holds latent statistics; give it with --stats, beside a decoder")
    if kind == "decoder":
        return _from_parts(path, tensors, request)
    request.refuse(f"a {kind}", "stats", "encoder", "encoder_weights", "decoder_heads")
    config = generator_config(tensors, path)
    network = build_for(lambda: DIT_DH.build(kind, config), shapes_of(tensors), path)
    load_weights(network, tensors, path)
    inputs = {"weights": Artifact(path, "weights")}
    if request.rae:
        autoencoder = open_autoencoder(request.rae)
        autoencoder.check_decodes(config.latent_shape, path)
        inputs[ROLE] = autoencoder.artifact
    description = {
        "time_shift": request.time_shift or default_time_shift(*config.latent_shape),
        "class_names": [str(label) for label in range(config.num_classes)],
        "class_dropout": _PUBLISHED_CLASS_DROPOUT,
    }
    return _Imported(network, inputs, description)


def _from_parts(path: Path, tensors: dict[str, Tensor], request: ImportRequest) -> _Imported:
    """A released decoder with the statistics and the encoder that it was made for."""
    request.refuse("an RAE decoder", "rae", "time_shift")
    if not request.stats or not request.encoder:
        raise UsageError(f"{path} holds an RAE decoder: pass its latents' --stats and its --encoder")
    sizes = decoder_config(tensors, request.decoder_heads, path)
    encoder = open_encoder(request.encoder, sizes["side"], weights=request.encoder_weights)
    if encoder.latent_shape() != (sizes["channels"], sizes["side"], sizes["side"]):
        raise InputError(
            f"{path} decodes {sizes['channels']} x {sizes['side']} x {sizes['side']}; {request.encoder} gives "
            f"{' x '.join(map(str, encoder.latent_shape()))}"
        )
    named = diffusers_decoder_names(tensors)
    positions = named.pop("decoder_pos_embed")
    rae = assemble(encoder, sizes, named, path)
    own = rae.decoder.get_buffer("decoder_pos_embed")
    if positions.shape != own.shape or not torch.allclose(positions.float(), own, atol=1e-5):
        named["decoder_pos_embed"] = positions
        rae = assemble(encoder, sizes | {"decoder_positions": True}, named, path)
    stats = resolve(request.stats)
    _set_statistics(rae, state_dict(read_weights_file(stats), None, stats), stats)
    inputs = {"decoder": Artifact(path, "weights"), "stats": Artifact(stats, "statistics")}
    inputs |= {"encoder": encoder.source} if encoder.source else {}
    return _Imported(rae, inputs)


def _set_statistics(rae: RAE, tensors: dict[str, Tensor], path: Path) -> None:
    if tensors.keys() - {"mean", "var"} or "var" not in tensors:
        raise InputError(f"{path} holds {some_names(tensors)}; expected: the latents' mean and var")
    mean = tensors.get("mean", torch.zeros(()))  # latents that were not centred have none
    _spread("mean", mean, rae.latent_mean, path)
    _spread("var", tensors["var"], rae.latent_var, path)
    if rae.latent_var.min() < 0:
        raise InputError(f"{path}: var is negative in places")


def _from_diffusers(folder: Path, request: ImportRequest) -> _Imported:
    """An RAE from the folder of a saved AutoencoderRAE."""
    request.refuse(f"an {_AUTOENCODER_RAE} folder", *(name for name in vars(request) if name != "preset"))
    config, file = diffusers_folder.open_folder(folder, _AUTOENCODER_RAE)
    tensors = read_tensors(file)
    if config.get("encoder_type") not in _ENCODERS:
        raise InputError(f"{folder} has an encoder of type {config.get('encoder_type')}; known: {', '.join(_ENCODERS)}")
    wrong = [name for name in _FOLDER_SIZES if not isinstance(config.get(name), int) or config[name] < 1]
    scaling = config.get("scaling_factor", 1.0)
    if wrong or not isinstance(scaling, int | float) or not scaling > 0:
        raise InputError(f"{folder}/config.json does not say {some_names(wrong or ['scaling_factor'])}")
    parts = {
        part: {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
        for part in ("encoder.", "decoder.")
    }
    plain = {name: value for name, value in tensors.items() if not name.startswith(("encoder.", "decoder."))}
    if plain.keys() != set(_FOLDER_BUFFERS):
        odd = plain.keys() ^ set(_FOLDER_BUFFERS)
        raise InputError(f"{file} does not fit an {_AUTOENCODER_RAE}: {some_names(sorted(odd))} missing or unknown")
    name, arguments = _ENCODERS[config["encoder_type"]]
    width = config["encoder_hidden_size"]
    arguments = arguments | {
        "embed_dim": width, "depth": config["encoder_num_hidden_layers"], "num_heads": width // _HEAD_WIDTH,
        "patch_size": config["encoder_patch_size"], "mlp_ratio": feed_forward_width(parts["encoder."]) / width,
    }  # fmt: skip
    with decoding_errors(folder):
        TIMM.check(name, arguments)
    encoder = TIMM.from_tensors(name, arguments, config["encoder_input_size"], parts["encoder."], file)
    mean, std = (tuple(plain[f"encoder_{what}"].flatten().tolist()) for what in ("mean", "std"))
    encoder = replace(encoder, mean=mean, std=std)
    channels, side, _ = encoder.latent_shape()
    sizes = {
        "image_size": side * config["patch_size"], "channels": channels, "side": side,
        "decoder_width": config["decoder_hidden_size"], "decoder_depth": config["decoder_num_hidden_layers"],
        "decoder_heads": config["decoder_num_attention_heads"], "decoder_hidden": config["decoder_intermediate_size"],
    }  # fmt: skip
    rae = assemble(encoder, sizes, parts["decoder."], file)
    scale = (plain["_latents_std"].double() + VARIANCE_FLOOR) / scaling
    # diffusers divides by std + floor, we by sqrt(var + floor): a variance that makes them the same.
    _spread("_latents_std", scale.square() - VARIANCE_FLOOR, rae.latent_var, file)
    _spread("_latents_mean", plain["_latents_mean"], rae.latent_mean, file)
    return _Imported(rae, {"weights": Artifact(file, "weights")})


def _spread(name: str, value: Tensor, buffer: Tensor, path: Path) -> None:
    """Copies per element (C, H, W), per channel (C, 1, 1), or one for all, with or without a leading 1."""
    shape = tuple(value.shape[1:] if value.ndim == 4 and len(value) == 1 else value.shape)
    fits = shape in (tuple(buffer.shape), (len(buffer), 1, 1)) or value.numel() == 1
    if not fits or not value.isfinite().all():
        held = f"of shape {tuple(value.shape)}" if not fits else "not finite"
        raise InputError(f"{path}: {name} is {held}; the latents are {tuple(buffer.shape)}")
    buffer.copy_((value.reshape(()) if value.numel() == 1 else value.reshape(shape)).expand_as(buffer))
