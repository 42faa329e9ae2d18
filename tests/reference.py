"""The released networks' arithmetic, written out by hand in float64 as functions of a checkpoint's tensors.

Nothing of mfkit is used: it is what imported weights are compared with.
"""

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def random_generator(
    *, channels: int, side: int, num_classes: int, width: int, depth: int, heads: int, head_width: int, head_depth: int,
    head_heads: int, student: bool, gated: bool = True,
) -> Weights:  # fmt: skip
    """A DiT-DH checkpoint of the released layout with random weights, none of them zero."""
    shapes: dict[str, tuple[int, ...]] = {
        "s_embedder.proj.weight": (width, channels, 1, 1), "s_embedder.proj.bias": (width,),
        "x_embedder.proj.weight": (head_width, channels, 1, 1), "x_embedder.proj.bias": (head_width,),
        "pos_embed": (1, side**2, width), "y_embedder.embedding_table.weight": (num_classes + 1, width),
        "final_layer.norm_final.weight": (head_width,), "final_layer.linear.weight": (channels, head_width),
        "final_layer.linear.bias": (channels,), "final_layer.adaLN_modulation.1.weight": (2 * head_width, head_width),
        "final_layer.adaLN_modulation.1.bias": (2 * head_width,),
    }  # fmt: skip
    if width != head_width:
        shapes |= {"s_projector.weight": (head_width, width), "s_projector.bias": (head_width,)}
    for name in ("t_embedder", "r_embedder")[: 1 + student]:
        shapes |= {f"{name}.W": (256,), f"{name}.mlp.0.weight": (width, 512), f"{name}.mlp.0.bias": (width,)}
        shapes |= {f"{name}.mlp.2.weight": (width, width), f"{name}.mlp.2.bias": (width,)}
    for number in range(depth + head_depth):
        size = width if number < depth else head_width
        hidden = int(2 / 3 * 4 * size) if gated else 4 * size
        block = {"norm1.weight": (size,), "norm2.weight": (size,)}
        layers = {"attn.qkv": (3 * size, size), "attn.proj": (size, size), "adaLN_modulation.1": (6 * size, size)}
        if gated:
            layers |= {"mlp.w12": (2 * hidden, size), "mlp.w3": (size, hidden)}
        else:
            layers |= {"mlp.fc1": (hidden, size), "mlp.fc2": (size, hidden)}
        for name, shape in layers.items():
            block |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
    generator = torch.Generator().manual_seed(5)
    tensors = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in ("t_embedder.W", "r_embedder.W"):
        if name in tensors:
            tensors[name] = torch.randn(256, generator=generator)
    for part, size, count in (("enc", width, heads), ("dec", head_width, head_heads)):
        cos, sin = rotary(size // count, side)
        tensors |= {f"{part}_feat_rope.freqs_cos": cos, f"{part}_feat_rope.freqs_sin": sin}
    return tensors


def rotary(head: int, side: int) -> tuple[Tensor, Tensor]:
    """Angle of dimension d at (row, column): the row's for the first half of a head, the column's for the second."""
    angles = torch.zeros(side * side, head)
    for place in range(side * side):
        for d in range(head):
            half = head // 2
            position = place // side if d < half else place % side
            angles[place, d] = position * 10000.0 ** (-2 * ((d % half) // 2) / half)
    return angles.cos(), angles.sin()


def generator(
    weights: Weights, z: Tensor, t: Tensor, y: Tensor, r: Tensor | None, heads: int, head_heads: int
) -> Tensor:
    """v(z, t, y), or u(z, r, t, y) where r is given. (B, C, H, W), float64."""
    w = {name: value.double() for name, value in weights.items()}
    z, t = z.double(), t.double()
    width = w["s_embedder.proj.weight"].shape[0]
    time = _embed_time(w, "t_embedder", t)
    if r is not None:
        time = time + _embed_time(w, "r_embedder", t - r.double())
    condition = _silu(time + w["y_embedder.embedding_table.weight"][y])[:, None]
    tokens = z.flatten(2).mT
    s = tokens @ w["s_embedder.proj.weight"][:, :, 0, 0].T + w["s_embedder.proj.bias"] + w["pos_embed"]
    x = tokens @ w["x_embedder.proj.weight"][:, :, 0, 0].T + w["x_embedder.proj.bias"]
    count = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    deep = count - 2
    for number in range(deep):
        s = _block(w, number, s, condition, heads, "enc")
    s = _silu(time[:, None] + s)
    if "s_projector.weight" in w:
        s = _linear(w, "s_projector", s)
    assert width == w["pos_embed"].shape[-1]
    for number in range(deep, count):
        x = _block(w, number, x, s, head_heads, "dec")
    shift, scale = _linear(w, "final_layer.adaLN_modulation.1", _silu(s)).chunk(2, -1)
    x = _rms(x, w["final_layer.norm_final.weight"]) * (1 + scale) + shift
    return _linear(w, "final_layer.linear", x).mT.reshape(z.shape)


def _block(w: Weights, number: int, x: Tensor, condition: Tensor, heads: int, part: str) -> Tensor:
    name = f"blocks.{number}"
    modulation = _linear(w, f"{name}.adaLN_modulation.1", _silu(condition)).chunk(6, -1)
    inner = _rms(x, w[f"{name}.norm1.weight"]) * (1 + modulation[1]) + modulation[0]
    batch, tokens, width = x.shape
    split = _linear(w, f"{name}.attn.qkv", inner).reshape(batch, tokens, 3, heads, width // heads)
    query, key, value = (split[:, :, part].transpose(1, 2) for part in range(3))
    cos, sin = w[f"{part}_feat_rope.freqs_cos"], w[f"{part}_feat_rope.freqs_sin"]
    query, key = _turn(query, cos, sin), _turn(key, cos, sin)
    weights = (query @ key.mT / math.sqrt(width // heads)).softmax(-1)
    mixed = (weights @ value).transpose(1, 2).reshape(batch, tokens, width)
    x = x + modulation[2] * _linear(w, f"{name}.attn.proj", mixed)
    inner = _rms(x, w[f"{name}.norm2.weight"]) * (1 + modulation[4]) + modulation[3]
    if f"{name}.mlp.w12.weight" in w:
        one, two = _linear(w, f"{name}.mlp.w12", inner).chunk(2, -1)
        out = _linear(w, f"{name}.mlp.w3", _silu(one) * two)
    else:
        h = _linear(w, f"{name}.mlp.fc1", inner)
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        out = _linear(w, f"{name}.mlp.fc2", h)
    return x + modulation[5] * out


def random_decoder(*, channels: int, side: int, patch: int, width: int, depth: int, hidden: int) -> Weights:
    """A ViT-MAE decoder of the released layout with random weights, and its positions spaced by 1."""
    shapes: dict[str, tuple[int, ...]] = {
        "decoder_embed.weight": (width, channels), "decoder_embed.bias": (width,),
        "decoder_norm.weight": (width,), "decoder_norm.bias": (width,),
        "decoder_pred.weight": (3 * patch**2, width), "decoder_pred.bias": (3 * patch**2,),
        "trainable_cls_token": (1, 1, width),
    }  # fmt: skip
    for number in range(depth):
        layers = {f"attention.attention.{part}": (width, width) for part in ("query", "key", "value")}
        layers |= {"attention.output.dense": (width, width)}
        layers |= {"intermediate.dense": (hidden, width), "output.dense": (width, hidden)}
        layers |= {"layernorm_before": (width,), "layernorm_after": (width,)}
        for name, shape in layers.items():
            shapes[f"decoder_layers.{number}.{name}.weight"] = shape
            shapes[f"decoder_layers.{number}.{name}.bias"] = shape[:1]
    generator = torch.Generator().manual_seed(6)
    tensors = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    positions = torch.zeros(1, 1 + side**2, width)
    for place in range(side**2):
        for half, coordinate in enumerate((place % side, place // side)):
            for i in range(width // 4):
                angle = coordinate * 10000.0 ** (-4 * i / width)
                positions[0, 1 + place, half * width // 2 + i] = math.sin(angle)
                positions[0, 1 + place, half * width // 2 + width // 4 + i] = math.cos(angle)
    return tensors | {"decoder_pos_embed": positions}


def decoder(weights: Weights, tokens: Tensor, heads: int, patch: int) -> Tensor:
    """Tokens (B, N, C) to normalised images (B, 3, S, S), float64."""
    w = {name: value.double() for name, value in weights.items()}
    x = _linear(w, "decoder_embed", tokens.double())
    x = torch.cat([w["trainable_cls_token"].expand(len(x), -1, -1), x], 1) + w["decoder_pos_embed"]
    batch, count, width = x.shape
    depth = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("decoder_layers."))
    for number in range(depth):
        name = f"decoder_layers.{number}"
        inner = _layer_norm(w, f"{name}.layernorm_before", x)
        query, key, value = (
            _linear(w, f"{name}.attention.attention.{part}", inner).reshape(batch, count, heads, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = (query @ key.mT / math.sqrt(width // heads)).softmax(-1) @ value
        x = x + _linear(w, f"{name}.attention.output.dense", mixed.transpose(1, 2).reshape(x.shape))
        inner = _linear(w, f"{name}.intermediate.dense", _layer_norm(w, f"{name}.layernorm_after", x))
        x = x + _linear(w, f"{name}.output.dense", 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2))))
    patches = _linear(w, "decoder_pred", _layer_norm(w, "decoder_norm", x))[:, 1:]
    side = round((count - 1) ** 0.5)
    image = patches.reshape(batch, side, side, patch, patch, 3)
    return torch.einsum("bhwpqc->bchpwq", image).reshape(batch, 3, side * patch, side * patch)


def _embed_time(w: Weights, name: str, t: Tensor) -> Tensor:
    phase = 2 * math.pi * t[:, None] * w[f"{name}.W"]
    hidden = _silu(_linear(w, f"{name}.mlp.0", torch.cat([phase.sin(), phase.cos()], -1)))
    return _linear(w, f"{name}.mlp.2", hidden)


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = torch.empty_like(x)
    turned[..., 0::2], turned[..., 1::2] = -x[..., 1::2], x[..., 0::2]
    return x * cos + turned * sin
