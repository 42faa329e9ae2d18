"""Building blocks of the diffusion transformer: gated RMS-normalised blocks, rotary positions, embeddings."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_DEEPEST = 1000
"""Blocks of a network; the deepest published one here has 40."""
_WIDEST = 256
"""Tokens on a side; the published networks have 32 at most."""
_MOST_POSITIONS = 1 << 25
"""Numbers in a table of positions; the largest published one here has 1.2 million."""


def check_sizes(*, depth: int = 0, side: int = 0, width: int = 0) -> None:
    """Refuses a network that takes forever to build, before any of it is built: files of others describe theirs.

    :raises ValueError: with the size.
    """
    if depth > _DEEPEST:
        raise ValueError(f"a network of {depth} blocks; at most {_DEEPEST} are built")
    if side > _WIDEST or side**2 * width > _MOST_POSITIONS:
        raise ValueError(f"positions of {side} x {side} tokens of width {width}: too many")


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension, computed in float32, with a learnt weight."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return (x.float() * scale).to(x.dtype) * self.weight


class Linear(nn.Linear):
    """A linear layer. Large evaluations without gradients on a CPU go through oneDNN, as a 1x1 convolution.

    PyTorch gives float32 matrix products to MKL, which leaves half of an AMD core idle: a forward pass of a
    DiT-DH-S takes less than half the time this way. Backward passes gain little, and those of the widest layers
    nothing, so training keeps to the product.
    """

    _LARGE_WEIGHT, _MANY_ROWS = 2**18, 256

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(x)
        large = x.numel() // x.shape[-1] >= self._MANY_ROWS and self.weight.numel() >= self._LARGE_WEIGHT
        exact = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return _Product.apply(x, self.weight, self.bias, large and exact and x.device.type == "cpu")


class _Product(torch.autograd.Function):
    """x W^T + b without gradients, and its derivative along x: one product.

    That of PyTorch's own layer takes another, of x by the derivative of W, which is zero.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, as_convolution: bool) -> Tensor:
        if not as_convolution:
            return F.linear(x, weight, bias)
        pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # channels last: no copy
        mixed = F.conv2d(pixels, weight[:, :, None, None], bias)
        return mixed.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, bool], output: Tensor) -> None:
        _, weight, _, ctx.as_convolution = inputs
        ctx.save_for_forward(weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def jvp(ctx: Any, d_x: Tensor, d_weight: None, d_bias: None, _: None) -> Tensor:
        (weight,) = ctx.saved_tensors
        return _Product.forward(d_x.contiguous(), weight, None, ctx.as_convolution)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Xavier weights and no bias at the start."""
    layer = Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that gives zero at the start."""
    layer = Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class SwiGLU(nn.Module):
    """Gated feed-forward: w3(silu(a) * b), with (a, b) the halves of w12(x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = linear(width, 2 * hidden)
        self.w3 = linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class FeedForward(nn.Module):
    """Plain feed-forward, fc2(gelu(fc1(x))) with the tanh form of GELU: the variant that some DiT-DH models use."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = linear(width, hidden)
        self.fc2 = linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class RotaryPositions(nn.Module):
    """2-D rotary positions: half of a head's dimensions turn with the row, the other half with the column.

    Frequencies are 10000^(-2i/(d/2)); neighbouring dimensions form a rotating pair. The cosines and sines are
    buffers of shape (side * side, head_width), stored with the weights as in the released checkpoints.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, head_width: int, side: int) -> None:
        super().__init__()
        axis = head_width // 2
        frequencies = 10000.0 ** (-torch.arange(0, axis, 2).float() / axis)
        angles = torch.outer(torch.arange(side).float(), frequencies).repeat_interleave(2, dim=1)  # (side, axis)
        rows = angles[:, None, :].expand(side, side, axis)
        columns = angles[None, :, :].expand(side, side, axis)
        grid = torch.cat([rows, columns], dim=-1).reshape(side * side, 2 * axis)
        self.register_buffer("freqs_cos", grid.cos())
        self.register_buffer("freqs_sin", grid.sin())

    def forward(self, x: Tensor) -> Tensor:
        """Turns queries or keys x of shape (B, heads, N, head_width)."""
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = torch.stack([-odd, even], dim=-1).flatten(-2)
        return (x * self.freqs_cos + turned * self.freqs_sin).to(x.dtype)


class _Evaluation(torch.autograd.Function):
    """Softmax attention without gradients, by the fused kernel, and its forward-mode derivative, which no kernel has.

    With P = softmax(S), S = q k^T / sqrt(d): do = (P dS - P rowsum(P dS)) v + P dv. It is taken over so many
    queries at a time, so that its memory grows with the tokens, not with their square.
    """

    queries_at_a_time = 128

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, d_query: Tensor, d_key: Tensor, d_value: Tensor) -> Tensor:
        query, key, value = ctx.saved_tensors
        scale = query.shape[-1] ** -0.5
        chunks = (x.split(_Evaluation.queries_at_a_time, dim=-2) for x in (query, d_query))
        slopes = []
        for q, dq in zip(*chunks, strict=True):
            shares = (scale * q @ key.mT).softmax(-1)
            moved = shares * (scale * (dq @ key.mT + q @ d_key.mT))
            moved = moved - shares * moved.sum(-1, keepdim=True)
            slopes.append(moved @ value + shares @ d_value)
        return torch.cat(slopes, dim=-2)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over (B, heads, N, d), by a fused kernel; differentiable in reverse or, where
    gradients are off, in forward mode."""
    if torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value)
    return _Evaluation.apply(query, key, value)


class Attention(nn.Module):
    """Multi-head self-attention over (B, N, width) with rotary positions on queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width)
        self.proj = linear(width, width)

    def forward(self, x: Tensor, rope: RotaryPositions) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        mixed = attention(rope(query), rope(key), value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """Transformer block whose shift, scale and gate come from a condition, per sample or per token."""

    def __init__(self, width: int, heads: int, *, gated: bool = True) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, int(2 / 3 * 4 * width)) if gated else FeedForward(width, 4 * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zero_linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor, rope: RotaryPositions) -> Tensor:
        """x is (B, N, width); condition is (B, 1, width), or (B, N, width) for one condition per token."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), rope)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Normalises, shifts and scales per token, and projects to the latent's channels."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width)
        self.linear = zero_linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zero_linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class TimeEmbedding(nn.Module):
    """Gaussian Fourier features [sin(2 pi t W), cos(2 pi t W)], W ~ N(0, 1) fixed, then a two-layer MLP.

    With ``silent`` its output is zero at the start.
    """

    features = 256

    def __init__(self, width: int, *, silent: bool = False) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(self.features), requires_grad=False)
        hidden, output = linear(2 * self.features, width), zero_linear(width, width)
        nn.init.normal_(hidden.weight, std=0.02)
        if not silent:
            nn.init.normal_(output.weight, std=0.02)
        self.mlp = nn.Sequential(hidden, nn.SiLU(), output)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) times in [0, 1] to (B, width). The phase is taken in float32: half precision cannot resolve it."""
        phase = 2 * math.pi * t.float()[:, None] * self.W.float()
        return self.mlp(torch.cat([phase.sin(), phase.cos()], dim=-1).to(self.W.dtype))


class LabelEmbedding(nn.Module):
    """A row per class and a last row for "no label"."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class PixelEmbedding(nn.Module):
    """1x1 convolution: (B, C, H, W) to tokens (B, H * W, width)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=1)
        nn.init.xavier_uniform_(self.proj.weight)
        self.proj.bias = nn.Parameter(torch.zeros(width))

    def forward(self, z: Tensor) -> Tensor:
        return self.proj(z).flatten(2).transpose(1, 2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def sincos_positions(width: int, side: int) -> Tensor:
    """Fixed 2-D sine-cosine positions in the layout of MAE, (1, side * side, width): column half, then row half."""
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.outer(torch.arange(side, dtype=torch.float64), frequencies)
    one_axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    columns = one_axis[None, :, :].expand(side, side, -1)
    rows = one_axis[:, None, :].expand(side, side, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, side * side, width).float()
