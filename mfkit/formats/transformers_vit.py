"""Vision transformers of the transformers library by timm's names: DINOv2 (with registers), SigLIP, ViT-MAE."""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_RENAMES = (
    (r"^(vision_model|vit|dinov2_with_registers|dinov2|model)\.", ""),
    (r"^embeddings\.patch_embeddings?(\.projection)?\.", "patch_embed.proj."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
    (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.self_attn\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.attention\.(attention\.)?(q|k|v)(uery|ey|alue|_proj)\.", r".attn.\2."),
    (r"\.(self_attn\.out_proj|attention\.output\.dense|attention\.o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^(post_)?layernorm\.", "norm."),
)
_UNUSED = re.compile(r"(^|\.)(mask_token|head\.|pooler\.|decoder)|position_ids$")
"""Tensors that no patch token depends on."""


def is_transformers_layout(tensors: Mapping[str, Tensor]) -> bool:
    return any(re.search(r"(^|\.)embeddings\.patch_embedding", name) for name in tensors)


def timm_arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` that make its network compute what transformers computes with the weights."""
    siglip = any(name.endswith("embeddings.position_embedding.weight") for name in tensors)
    # SigLIP's pooling plays no part in the patch tokens.
    return {"act_layer": "gelu_tanh", "global_pool": ""} if siglip else {}


def feed_forward_width(tensors: Mapping[str, Tensor]) -> int:
    """Hidden width of the blocks' feed-forward layers."""
    layers = (".mlp.fc1.weight", ".intermediate.dense.weight")
    return next(value.shape[0] for name, value in tensors.items() if name.endswith(layers))


def timm_names(tensors: Mapping[str, Tensor], *, side: int, fold_class_position: bool) -> dict[str, Tensor]:
    """The weights under timm's names, with queries, keys and values in one matrix.

    :param side: patches on a side; the positions are resized to it as transformers does.
    :param fold_class_position: add the class token's position to the token, for models whose positions are the
        patches' alone.
    """
    named: dict[str, Tensor] = {_timm_name(name): value for name, value in tensors.items() if not _UNUSED.search(name)}
    if "pos_embed" not in named or any(name.startswith("rope") for name in named):
        raise ValueError("transformers' layout is known of DINOv2, SigLIP and ViT-MAE alone; take timm's weights")
    for name in [name for name in named if ".attn.q." in name]:
        parts = [named.pop(name.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
        named[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    positions = named["pos_embed"].reshape(1, *named["pos_embed"].shape[-2:])
    prefix = 1 if "cls_token" in named else 0
    own, grid = positions[:, :prefix], _resized(positions[:, prefix:], side, antialias="reg_token" in named)
    if fold_class_position and prefix:
        named["cls_token"] = named["cls_token"] + own
        named["pos_embed"] = grid
    else:
        named["pos_embed"] = torch.cat([own, grid], 1)
    # AutoencoderRAE leaves the last norm's weights out of the file, as mfkit leaves them out of the computation.
    width = named["patch_embed.proj.bias"].numel()
    return {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)} | named


def _resized(positions: Tensor, side: int, *, antialias: bool) -> Tensor:
    """Positions (1, N, D) of a square grid at another size, bicubic; antialiased for DINOv2 with registers alone."""
    old = round(positions.shape[1] ** 0.5)
    if old == side:
        return positions
    grid = positions.mT.unflatten(2, (old, old))
    return F.interpolate(grid, size=(side, side), mode="bicubic", antialias=antialias).flatten(2).mT


def _timm_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
