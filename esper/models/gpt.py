"""A decoder-only transformer for text: pre-norm blocks of causal attention and an MLP, without biases.

Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019; initial weights as in nanoGPT. Rotary
positions: Su et al., RoFormer, arXiv:2104.09864.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.configs import ModelConfig
from esper.data import DataSpec
from esper.errors import ConfigError

__all__ = ["GPT", "build", "describe"]

_INIT_STD = 0.02
_ROTARY_BASE = 10_000.0


def build(config: ModelConfig, spec: DataSpec) -> nn.Module:
    """Build a GPT; see `build_host`."""
    if len(spec.inputs) != 1 or spec.dtype != torch.int64:
        raise ConfigError("model=gpt: reads text; use dataset=text or dataset=python_source, or another model")
    return GPT(
        vocab_size=spec.num_outputs,
        context=spec.inputs[0],
        width=config.width,
        heads=config.heads,
        mlp_widths=[round(config.mlp_ratio * config.width)] * config.depth,
        positions=config.positions,
    )


def describe(config: ModelConfig, _spec: DataSpec, network: nn.Module) -> dict[str, Any]:
    """Sizes of a network; see `resnet.describe`."""
    assert isinstance(network, GPT)
    return {
        "vocab_size": network.head.out_features,
        "context": network.context,
        "width": config.width,
        "heads": config.heads,
        "positions": config.positions,
        "mlp_widths": [_mlp_width(block) for block in network.blocks],
    }


def _mlp_width(block: nn.Module) -> int:
    """Hidden features of a block, also if something that is no block has grown around it."""
    return next(module.inner.out_features for module in block.modules() if isinstance(module, MLP))


class GPT(nn.Module):
    """Embeddings, a chain `blocks` of equal blocks, a norm and a linear head, not tied to the embeddings.

    Shape: token ids int64 (N, T), T up to `context`, to logits (N, T, V).

    Args:
        vocab_size: V.
        context: tokens that it can read at once.
        width: features of a token.
        heads: attention heads, which share the width.
        mlp_widths: hidden features of each block's MLP.
        positions: `learned` vectors added to the embeddings, or `rotary` in each attention.
    """

    def __init__(
        self, *, vocab_size: int, context: int, width: int, heads: int, mlp_widths: Sequence[int], positions: str
    ) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context, width) if positions == "learned" else None
        rotary_length = context if positions == "rotary" else None
        self.blocks = nn.Sequential(
            *(Block(width, heads, hidden, rotary_length=rotary_length) for hidden in mlp_widths)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self._init_weights()

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the logits of the next token at every position."""
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[: tokens.shape[1]]
        logits = self.head(self.norm(self.blocks(x)))
        assert isinstance(logits, Tensor)
        return logits

    def _init_weights(self) -> None:
        """Normal with deviation 0.02; what is added to the residual stream smaller, so that its variance stays."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_INIT_STD)
        for block in self.blocks:
            assert isinstance(block, Block)
            for layer in (block.attention.out, block.mlp.out):
                nn.init.normal_(layer.weight, std=_INIT_STD / math.sqrt(2 * len(self.blocks)))


class Block(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)). Shape: (N, T, D), kept."""

    def __init__(self, width: int, heads: int, hidden: int, *, rotary_length: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.attention = CausalAttention(width, heads, rotary_length=rotary_length)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.mlp = MLP(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        x = x + self.attention(self.norm1(x))
        y = x + self.mlp(self.norm2(x))
        assert isinstance(y, Tensor)
        return y

    def scale_residual(self, factor: float) -> None:
        """Multiply what is added to the residual stream; see `kasmina.copies.scale_to_depth`."""
        with torch.no_grad():
            self.attention.out.weight.mul_(factor)
            self.mlp.out.weight.mul_(factor)


class MLP(nn.Module):
    """Linear, GELU, linear. Shape: (N, T, D), kept."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run the MLP."""
        y = self.out(F.gelu(self.inner(x)))
        assert isinstance(y, Tensor)
        return y


class CausalAttention(nn.Module):
    """Multi-head attention in which a position reads itself and those before it.

    Shape: (N, T, D), kept.

    Args:
        width: D.
        heads: heads, which share the width.
        rotary_length: rotate queries and keys by their positions, up to so many; None: no positions.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, heads: int, *, rotary_length: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.is_rotary = rotary_length is not None
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        if rotary_length is not None:
            frequencies = _ROTARY_BASE ** -(torch.arange(0, width // heads, 2) / (width // heads))
            angles = torch.outer(torch.arange(rotary_length), frequencies)
            self.register_buffer("cos", angles.cos(), persistent=False)  # (T, D / heads / 2)
            self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run the attention."""
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if self.is_rotary:
            q, k = self._rotated(q), self._rotated(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = self.out(y.transpose(1, 2).reshape(n, t, width))
        assert isinstance(out, Tensor)
        return out

    def _rotated(self, x: Tensor) -> Tensor:
        """Rotate pairs of features (i, i + half) of (N, heads, T, features) by the position times their frequency."""
        t = x.shape[2]
        cos, sin = self.cos[:t].to(x.dtype), self.sin[:t].to(x.dtype)
        first, second = x.chunk(2, dim=3)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=3)
