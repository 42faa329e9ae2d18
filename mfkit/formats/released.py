"""What released checkpoints hold, by the names and shapes of their tensors: DiT-DH generators and RAE decoders.

Names: github.com/bytetriper/RAE (teachers, decoders) and github.com/sony/mf-rae (students).
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mfkit.artifacts.json_files import parse
from mfkit.errors import InputError
from mfkit.models.dit import DiTConfig

Tensors = Mapping[str, Tensor]
Format = Literal["teacher", "student", "decoder", "statistics"]

_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every name."""
_HEAD_DEPTH = 2
"""Of all published DiT-DH: what tells the parts of a network apart whose widths are the same."""
_DECODER_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Heads of the published decoders by width; the shapes do not tell them."""
_SHARED = 2
"""How often a number may be used: tied weights are those of two layers."""
_HARMLESS = 1 << 26
"""Bytes that may be anything: statistics are often one number per channel, shown as one per element."""
_ATTENTION = {
    "attention.attention.query": "attention.to_q",
    "attention.attention.key": "attention.to_k",
    "attention.attention.value": "attention.to_v",
    "attention.output.dense": "attention.to_out.0",
}
"""A decoder layer's attention, as released and as :class:`diffusers.AutoencoderRAE` calls it."""


def state_dict(document: object, wanted: Literal["ema", "model"] | None, origin: object) -> dict[str, Tensor]:
    """The weights in a checkpoint: the document itself, or what it holds under ``ema`` or ``model``.

    :param wanted: which of the two; None prefers the EMA.
    :raises InputError: it holds no weights, or not those wanted.
    """
    if not isinstance(document, Mapping):
        raise InputError(f"{origin} holds a {type(document).__name__}; expected: a state dict")
    parts = {name: document[name] for name in ("ema", "model") if isinstance(document.get(name), Mapping)}
    if wanted and wanted not in parts:
        held = " and ".join(f"`{name}`" for name in parts) or "plain weights"
        raise InputError(f"{origin} holds no `{wanted}` weights, but {held}")
    chosen = parts.get(wanted or "ema", parts.get("model", document))
    tensors = {
        _unwrapped(str(name)): value
        for name, value in chosen.items()
        if isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
    }
    if not tensors:
        raise InputError(f"{origin} holds no weights; its entries: {some_names(document)}")
    stored = {storage.data_ptr(): storage.nbytes() for storage in map(Tensor.untyped_storage, tensors.values())}
    if sum(value.nbytes for value in tensors.values()) > max(_HARMLESS, _SHARED * sum(stored.values())):
        raise InputError(f"{origin} holds weights that claim more numbers than are stored")
    return tensors


def detect_format(tensors: Tensors, origin: object) -> Format:
    """What the weights are of.

    :raises InputError: of nothing that is known here.
    """
    if {"x_embedder.proj.weight", "s_embedder.proj.weight"} <= tensors.keys():
        return "student" if any(name.startswith("r_embedder.") for name in tensors) else "teacher"
    if "decoder_embed.weight" in tensors:
        return "decoder"
    if {"mean", "var"} & tensors.keys() and tensors.keys() <= {"mean", "var"}:
        return "statistics"
    raise InputError(
        f"{origin} holds neither a DiT-DH generator, nor an RAE decoder, nor latent statistics, "
        f"but {some_names(tensors)}"
    )


def generator_config(tensors: Tensors, origin: object) -> DiTConfig:
    """The sizes of a DiT-DH from its shapes; the heads' widths are the last dimension of the rotary buffers.

    :raises InputError: a name that tells a size is missing, or the sizes contradict each other.
    """
    ranks = {
        "x_embedder.proj.weight": 4, "s_embedder.proj.weight": 4, "pos_embed": 3,
        "y_embedder.embedding_table.weight": 2,
        "enc_feat_rope.freqs_cos": 2, "dec_feat_rope.freqs_cos": 2, "blocks.0.attn.qkv.weight": 2,
    }  # fmt: skip
    head, deep, positions, table, deep_rope, head_rope, _ = (
        _shape(tensors, name, rank, origin) for name, rank in ranks.items()
    )
    if head[2:] != (1, 1) or deep[2:] != (1, 1):
        raise InputError(f"{origin} cuts latents into patches {head[2:]} and {deep[2:]}; only patches of 1 are known")
    side = _side(positions[1], "pos_embed", origin)
    widths = [
        _shape(tensors, f"blocks.{block}.attn.qkv.weight", 2, origin)[1] for block in range(_length(tensors, "blocks"))
    ]
    width, head_width = deep[0], head[0]
    depth = widths.index(head_width) if width != head_width and head_width in widths else len(widths) - _HEAD_DEPTH
    if widths != [width] * depth + [head_width] * (len(widths) - depth):
        raise InputError(f"{origin} has blocks of widths {sorted(set(widths))}, its embedders {width} and {head_width}")
    for size, rope in ((width, deep_rope[-1]), (head_width, head_rope[-1])):
        if not rope or rope % 4 or size % rope:
            raise InputError(f"{origin} has heads of width {rope}, which do not fit a width of {size}")
    fields = dict(
        channels=head[1], side=side, num_classes=table[0] - 1, width=width, depth=depth, heads=width // deep_rope[-1],
        head_width=head_width, head_depth=len(widths) - depth, head_heads=head_width // head_rope[-1],
        gated="blocks.0.mlp.w12.weight" in tensors,
    )  # fmt: skip
    return parse(DiTConfig, fields, origin)


def decoder_config(tensors: Tensors, heads: int | None, origin: object) -> dict[str, Any]:
    """The fields of an :class:`~mfkit.autoencoders.rae.RAEConfig` that a decoder's shapes tell.

    :param heads: attention heads; None for those of the published decoder of this width.
    """
    width, channels = _shape(tensors, "decoder_embed.weight", 2, origin)
    side = _side(_shape(tensors, "decoder_pos_embed", 3, origin)[1] - 1, "decoder_pos_embed", origin)
    patch = _side(_shape(tensors, "decoder_pred.weight", 2, origin)[0] / 3, "decoder_pred.weight", origin)
    heads = heads or _DECODER_HEADS.get(width)
    if not heads or width % heads:
        raise InputError(f"{origin}: a decoder of width {width} with {heads or 'unknown'} heads; pass --decoder-heads")
    return {
        "channels": channels,
        "side": side,
        "image_size": side * patch,
        "decoder_width": width,
        "decoder_depth": _length(tensors, "decoder_layers"),
        "decoder_heads": heads,
        "decoder_hidden": _shape(tensors, "decoder_layers.0.intermediate.dense.weight", 2, origin)[0],
    }


def diffusers_decoder_names(tensors: Tensors) -> dict[str, Tensor]:
    """A released decoder's weights by the names of diffusers' ``RAEDecoder``; those that have them keep them."""
    renamed = {}
    for name, value in tensors.items():
        for released, ours in _ATTENTION.items():
            name = name.replace(released, ours)
        renamed[name] = value
    return renamed


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def _shape(tensors: Tensors, name: str, rank: int, origin: object) -> tuple[int, ...]:
    if name not in tensors:
        raise InputError(f"{origin} lacks {name}, which tells the network's sizes")
    shape = tuple(tensors[name].shape)
    if len(shape) != rank:
        raise InputError(f"{origin}: {name} has the shape {shape}, not {rank} dimensions")
    return shape


def _length(tensors: Tensors, stack: str) -> int:
    """Number of modules in a list of them."""
    numbers = [name.split(".")[1] for name in tensors if name.startswith(f"{stack}.")]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


def _side(area: float, name: str, origin: object) -> int:
    side = round(max(area, 0) ** 0.5)
    if side * side != area or not side:
        raise InputError(f"{origin}: {name} is of no square grid ({area:g} places)")
    return side


def some_names(names: Collection[Any]) -> str:
    """The first of them, for an error."""
    shown = ", ".join(str(name) for name in list(names)[:5])
    return f"{shown}{', …' if len(names) > 5 else ''}" if names else "nothing"
