"""Vision transformers of timm: any of them by name, with published or local weights, at any size its patch divides."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfkit.artifacts.artifact import Artifact, file_digest
from mfkit.artifacts.json_files import parse, read_json
from mfkit.artifacts.network_weights import build_for, load_weights, shapes_of
from mfkit.autoencoders.encoder import Encoder
from mfkit.errors import InputError, UsageError, decoding_errors
from mfkit.formats.hub import read_weights_file
from mfkit.formats.released import state_dict
from mfkit.formats.transformers_vit import is_transformers_layout, timm_arguments, timm_names
from mfkit.models.layers import check_sizes

_NORM_EPS = 1e-6
"""Of the last norm, where an encoder has none."""


@dataclass(frozen=True, kw_only=True)
class TimmArguments:
    """The arguments of ``timm.create_model`` that a file may set; others, such as where to fetch from, are refused."""

    patch_size: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float | None = None
    qkv_bias: bool | None = None
    qk_norm: bool | None = None
    init_values: float | None = None
    class_token: bool | None = None
    reg_tokens: int | None = None
    no_embed_class: bool | None = None
    pre_norm: bool | None = None
    act_layer: str | None = None
    global_pool: str | None = None

    def __post_init__(self) -> None:
        sizes = (self.patch_size, self.embed_dim, self.depth, self.num_heads)
        if any(size is not None and size < 1 for size in sizes):
            raise ValueError(f"an encoder of sizes {sizes}")
        check_sizes(depth=self.depth or 0)

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """What is used of the ``config.json`` that timm writes beside a model's weights."""

    architecture: str
    model_args: TimmArguments = field(default_factory=TimmArguments)
    pretrained_cfg: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Colours:
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


HUB_CONFIG = "config.json"
"""Beside a file of weights: which network they are of."""
_OURS = ("img_size", "in_chans", "num_classes")
"""Arguments that mfkit sets itself, whatever a file says."""


def read_hub_config(file: Path) -> HubConfig:
    """The ``config.json`` beside a file of weights.

    :raises InputError: it does not name the architecture, or sets arguments that mfkit does not know.
    """
    path = file.parent / HUB_CONFIG
    document = parse(dict, read_json(path), path)
    used = {name: document[name] for name in HubConfig.__dataclass_fields__ if document.get(name) is not None}
    if isinstance(arguments := used.get("model_args"), dict):
        used["model_args"] = {name: value for name, value in arguments.items() if name not in _OURS}
    return parse(HubConfig, used, path)


def has_hub_config(file: Path) -> bool:
    return (file.parent / HUB_CONFIG).exists()


class TimmLibrary:
    """The library timm (github.com/huggingface/pytorch-image-models)."""

    name = "timm"

    def check(self, model: str, arguments: dict[str, Any]) -> None:
        if not timm.is_model(model):  # hf-hub: and the like are none
            raise ValueError(f"{model} is not a timm model")
        try:
            parse(TimmArguments, arguments, model)
        except InputError as error:
            raise ValueError(str(error)) from error

    def build(self, model: str, arguments: dict[str, Any], size: int) -> nn.Module:
        return timm.create_model(model, pretrained=False, num_classes=0, img_size=size, **arguments)

    def patch_size(self, model: str, arguments: dict[str, Any]) -> int:
        if not timm.is_model(model):
            raise UsageError(f"{model}: neither a timm model nor a file of weights")
        with decoding_errors(model), torch.device("meta"):
            network = timm.create_model(model, num_classes=0, **arguments)
        sides = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        if not isinstance(sides, tuple) or sides[0] != sides[1] or not hasattr(network, "forward_intermediates"):
            raise UsageError(f"{model} is no vision transformer with square patches")
        return int(sides[0])

    def image_size(self, model: str) -> int:
        self.patch_size(model, {})
        expects = timm.get_pretrained_cfg(model)
        assert expects is not None  # of any model that timm has
        return int(expects.input_size[-1])

    def patch_tokens(self, network: Any, images: Tensor, layers: Sequence[int] = ()) -> Tensor:
        # Some ViTs normalise after pooling only.
        norms = [getattr(network, name, None) for name in ("norm", "fc_norm")]
        eps: float = next((value for norm in norms if (value := getattr(norm, "eps", None))), _NORM_EPS)
        found = _tokens(network, images, list(layers) or 1)
        normalised = [F.layer_norm(tokens, tokens.shape[-1:], eps=eps) for tokens in found]
        return _on_a_grid(normalised[0] if len(normalised) == 1 else torch.stack(normalised).mean(0))

    def layer_tokens(self, network: Any, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        return [_on_a_grid(tokens) for tokens in _tokens(network, images, list(layers))]

    def depth(self, network: Any) -> int:
        return len(network.blocks)

    def open(self, model: str, size: int, weights: Path | None) -> Encoder:
        if weights is not None:
            return self.from_tensors(model, {}, size, state_dict(read_weights_file(weights), None, weights), weights)
        self._check_size(model, {}, size, model)
        return self._encoder(model, {}, size, _published(model, img_size=size), None)

    def open_pooled(self, model: str, size: int, weights: Path | None) -> Encoder:
        """A pre-trained network for what it pools, which need not be a vision transformer."""
        if not timm.is_model(model):
            raise UsageError(f"{model}: neither a timm model nor a file of weights")
        with decoding_errors(model), torch.device("meta"):
            outline: Any = timm.create_model(model, num_classes=0)
        if hasattr(outline, "patch_embed"):
            return self.open(model, size, weights)
        if weights is None:
            return self._encoder(model, {}, size, _published(model), None)
        tensors = state_dict(read_weights_file(weights), None, weights)
        with decoding_errors(f"{weights}, as weights of {model},"):
            tensors = _filtered(tensors, outline)
        tensors = {name: value for name, value in tensors.items() if not name.startswith("head.fc.")}
        network = build_for(lambda: timm.create_model(model, num_classes=0), shapes_of(tensors), weights)
        load_weights(network, tensors, weights)
        return self._encoder(model, {}, size, network, weights)

    def open_hub_file(self, file: Path, size: int) -> Encoder:
        """An encoder from a file in the layout of timm's hub: its ``config.json`` beside it says which one it is."""
        config = read_hub_config(file)
        arguments = config.model_args.given()
        encoder = self.from_tensors(config.architecture, arguments, size, read_weights_file(file), file)
        mean, std = config.pretrained_cfg.get("mean"), config.pretrained_cfg.get("std")
        if mean is None and std is None:
            return encoder
        colours = parse(_Colours, {"mean": mean, "std": std}, file.parent / HUB_CONFIG)
        return replace(encoder, mean=colours.mean, std=colours.std)

    def from_tensors(
        self, model: str, arguments: dict[str, Any], size: int, tensors: Mapping[str, Tensor], file: Path
    ) -> Encoder:
        """An encoder with weights in timm's layout or, of DINOv2, SigLIP and ViT-MAE, in that of transformers.

        :param file: where they are from.
        """
        self._check_size(model, arguments, size, file)
        if is_transformers_layout(tensors):
            arguments = {**arguments, **timm_arguments(tensors)}
        with decoding_errors(f"{file}, as weights of {model},"), torch.device("meta"):
            outline = self.build(model, arguments, size)
        adapted = _adapted(tensors, outline, f"{file}, as weights of {model},")
        network = build_for(lambda: self.build(model, arguments, size), shapes_of(adapted), file)
        load_weights(network, adapted, file)
        return self._encoder(model, arguments, size, network, file)

    def _check_size(self, model: str, arguments: dict[str, Any], size: int, source: object) -> None:
        patch = self.patch_size(model, arguments)
        if size % patch:
            raise UsageError(f"{model} cuts images into patches of {patch} pixels, which do not divide {size}")
        try:
            check_sizes(side=size // patch)
        except ValueError as error:
            raise InputError(f"{source} at {size} pixels: {error}") from error

    def _encoder(
        self, model: str, arguments: dict[str, Any], size: int, network: nn.Module, file: Path | None
    ) -> Encoder:
        expects = timm.data.resolve_model_data_config(network)
        source = Artifact(file, "encoder", content_digest=file_digest(file)) if file else None
        mean, std = tuple(expects["mean"]), tuple(expects["std"])
        return Encoder(self, model, arguments, size, network.eval(), mean, std, source)


TIMM = TimmLibrary()


def _tokens(network: Any, images: Tensor, layers: list[int] | int) -> list[Tensor]:
    """Patch tokens (B, N, C) of these layers, or of the last few."""
    return network.forward_intermediates(images, indices=layers, intermediates_only=True, output_fmt="NLC")


def _on_a_grid(tokens: Tensor) -> Tensor:
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise InputError(f"the encoder gives {tokens.shape[1]} patch tokens, which is no square grid")
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def _adapted(tensors: Mapping[str, Tensor], outline: Any, source: str) -> dict[str, Tensor]:
    """A file's weights by the network's names and, for the positions, at its size; without a classifier."""
    side = outline.patch_embed.grid_size[0]
    with decoding_errors(source):
        for name, value in tensors.items():
            if "pos" in name:
                check_sizes(side=side, width=value.shape[-1] if value.ndim else 1)
        if is_transformers_layout(tensors):
            fold = bool(getattr(outline, "no_embed_class", False))
            tensors = timm_names(tensors, side=side, fold_class_position=fold)
        adapted = _filtered(tensors, outline)
    return {name: value for name, value in adapted.items() if not name.startswith("head.")}


def _filtered(tensors: Mapping[str, Tensor], outline: nn.Module) -> dict[str, Tensor]:
    """What timm does when it loads published weights itself, but then strictly."""
    adapt = getattr(sys.modules[type(outline).__module__], "checkpoint_filter_fn", None)
    return adapt(dict(tensors), outline) if adapt else dict(tensors)


def _published(model: str, **arguments: Any) -> nn.Module:
    try:
        return timm.create_model(model, pretrained=True, num_classes=0, **arguments)
    except (OSError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"the weights of {model} cannot be downloaded: {reason}; --encoder-weights takes a local copy (of a "
            "network to judge by, --features-weights)"
        ) from error
