"""Frozen vision encoders: any timm ViT by name, with published or local weights; that of an RAE file; ``tiny``."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mfkit.artifacts.artifact import Artifact, file_digest, open_artifact
from mfkit.artifacts.json_files import fields, read_json
from mfkit.autoencoders import weights
from mfkit.autoencoders.rae import IMAGENET_MEAN, IMAGENET_STD, RAE, RAEConfig, encode_patches, new_decoder
from mfkit.config.presets import TINY_ENCODER
from mfkit.errors import InputError, UsageError, using
from mfkit.formats.hub import local, read_document
from mfkit.formats.released import state_dict
from mfkit.formats.transformers_vit import is_transformers_layout, timm_arguments, timm_names
from mfkit.models.layers import check_sizes

TINY = "tiny"


@dataclass(frozen=True)
class Encoder:
    """A vision encoder ready to use, and how to build it again."""

    name: str
    """timm's."""
    arguments: dict[str, Any]
    """Of ``timm.create_model``, besides the size."""
    size: int
    """Side of its input in pixels."""
    network: nn.Module
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    source: Artifact | None = None
    """The file that the weights are from."""

    @torch.no_grad()
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what it makes of an image."""
        with using(self.name):
            _, *shape = encode_patches(self.network, torch.zeros(1, 3, self.size, self.size)).shape
        return (shape[0], shape[1], shape[2])


def open_encoder(encoder: str, size: int, weights_file: str | None = None) -> Encoder:
    """An encoder for square images of ``size`` pixels.

    :param encoder: a timm model name; a file, an RAE's or timm's with its ``config.json``; or ``tiny``, not trained.
    :param weights_file: a local copy of a timm model's weights, as timm writes them, or transformers those of
        DINOv2, SigLIP and ViT-MAE.
    """
    path = Path(encoder)
    if weights_file and (encoder == TINY or path.suffix == ".safetensors"):
        raise UsageError(f"--encoder-weights gives a timm model its weights; --encoder {encoder} is none")
    if encoder == TINY:
        name = "vit_tiny_patch16_224"
        network = timm.create_model(name, num_classes=0, img_size=size, **TINY_ENCODER)
        return Encoder(name, TINY_ENCODER, size, network)
    if _is_rae(path):
        return _of_rae(path, size)
    if path.suffix == ".safetensors":
        return timm_encoder(_architecture(path), {}, size, path)
    return timm_encoder(encoder, {}, size, local(weights_file) if weights_file else None)


def timm_encoder(
    name: str, arguments: dict[str, Any], size: int, file: Path | None, tensors: Mapping[str, Tensor] | None = None
) -> Encoder:
    """A timm ViT with its own mean and std, and its weights from the hub, or from a file.

    :param tensors: the weights, where they are in ``file`` among others.
    """
    with using(file or name):
        check_sizes(depth=arguments.get("depth", 0))
        patch = patch_size(name, arguments)
        check_sizes(side=size // patch)
    if size % patch:
        raise UsageError(f"{name} cuts images into patches of {patch} pixels, which do not divide {size}")
    if file:
        held = tensors or state_dict(read_document(file), None, file)
        if is_transformers_layout(held):
            arguments = {**arguments, **timm_arguments(held)}

        def make() -> nn.Module:
            return timm.create_model(name, num_classes=0, img_size=size, **arguments)

        with using(f"{file}, as weights of {name},"):
            with torch.device("meta"):
                outline = make()
            weights.check_room(outline, held, file)
            adapted = _adapted(held, outline)
            network = weights.fitting(make, weights.shapes(adapted), file)
        weights.load_weights(network, adapted, file)
    else:
        network = _published(name, arguments, size)
    expects = timm.data.resolve_model_data_config(network)
    source = Artifact(file, "encoder", {}, {}, content_digest=file_digest(file)) if file else None
    return Encoder(name, arguments, size, network.eval(), tuple(expects["mean"]), tuple(expects["std"]), source)


def _adapted(tensors: Mapping[str, Tensor], network: Any) -> dict[str, Tensor]:
    """A file's weights by the network's names and, for the positions, at its size; without a classifier."""
    if is_transformers_layout(tensors):
        fold = bool(getattr(network, "no_embed_class", False))
        tensors = timm_names(tensors, side=network.patch_embed.grid_size[0], fold_class_position=fold)
    # What timm does when it loads published weights itself, but then strictly.
    adapt = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    adapted = adapt(dict(tensors), network) if adapt else dict(tensors)
    return {name: value for name, value in adapted.items() if not name.startswith("head.")}


def _published(name: str, arguments: Mapping[str, Any], size: int) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, img_size=size, **arguments)
    except (OSError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"the weights of {name} cannot be had: {reason}; --encoder-weights takes a local copy"
        ) from error


def assemble(
    encoder: Encoder, decoder: Mapping[str, Any], tensors: dict[str, Tensor] | None = None, file: Path | None = None
) -> RAE:
    """An RAE of this encoder, and a decoder that is fresh or has these weights.

    :param decoder: the fields of an :class:`~mfkit.autoencoders.rae.RAEConfig` beside the encoder's.
    :param tensors: of the decoder; ``file``: where they are from.
    """
    config = RAEConfig(
        encoder_name=encoder.name, encoder=encoder.arguments, encoder_size=encoder.size, encoder_mean=encoder.mean,
        encoder_std=encoder.std, **decoder,
    )  # fmt: skip
    if tensors is not None and file is not None:
        weights.fitting(lambda: new_decoder(config), weights.shapes(tensors), file)
    rae = RAE(config)
    rae.encoder.load_state_dict(encoder.network.state_dict())
    if tensors is not None and file is not None:
        weights.load_weights(rae.decoder, tensors, file)
    return rae


def patch_size(name: str, arguments: Mapping[str, Any]) -> int:
    """Side of a timm ViT's patches in pixels."""
    if not timm.is_model(name):
        raise UsageError(f"{name}: neither a timm model nor a file of weights")
    with using(name), torch.device("meta"):
        network = timm.create_model(name, num_classes=0, **arguments)
    sides = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if not isinstance(sides, tuple) or sides[0] != sides[1] or not hasattr(network, "forward_intermediates"):
        raise UsageError(f"{name} is no vision transformer with square patches")
    return int(sides[0])


def encoder_size(encoder: str, side: int) -> int:
    """Side in pixels of the input from which an encoder, named as for :func:`open_encoder`, makes ``side`` patches."""
    path = Path(encoder)
    if _is_rae(path):
        return int(open_artifact(path, kinds=("rae",)).config["network"]["encoder_size"])
    return side * patch_size(_architecture(path) if path.suffix == ".safetensors" else encoder, {})


def _is_rae(path: Path) -> bool:
    """Whether a name is that of a safetensors file without timm's ``config.json``, and so of an RAE."""
    if path.suffix == ".safetensors" and not path.is_file():
        raise InputError(f"{path} does not exist")
    return path.suffix == ".safetensors" and not (path.parent / "config.json").exists()


def _of_rae(path: Path, size: int) -> Encoder:
    source, rae = open_artifact(path, kinds=("rae",)), weights.load_rae(path)
    config = rae.config
    if config.encoder_size != size:
        raise UsageError(f"the encoder of {path} takes {config.encoder_size} pixels; give --encoder-size")
    return Encoder(
        config.encoder_name, config.encoder, size, rae.encoder, config.encoder_mean, config.encoder_std, source
    )


def _architecture(path: Path) -> str:
    """The timm model of a file in the hub's layout, from the config.json beside it."""
    config = path.parent / "config.json"
    return str(fields(read_json(config), config, architecture=str)["architecture"])
