"""Branches for tokens (N, T, D), and for rows of features (N, D)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.urza.kernel import Kernel, Shape, blueprint

__all__ = ["BottleneckMLP", "TokenAttention", "mlp", "self_attention"]

_MIN_FEATURES = 4
"""A layer norm over fewer features leaves little but their signs."""


class BottleneckMLP(Kernel):
    """Layer norm, linear, GELU, linear, times a gain per feature. Shape: (N, T, D) to (N, T, D'), or (N, D) to (N, D').

    Source: Houlsby et al., Parameter-Efficient Transfer Learning for NLP, arXiv:1902.00751.
    """

    def __init__(self, in_features: int, width: int, out_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_features)
        self.fc1 = nn.Linear(in_features, width)
        self.fc2 = nn.Linear(width, out_features, bias=False)
        self.scale = nn.Parameter(torch.ones(out_features))

    @property
    def output_scale(self) -> nn.Parameter:
        """Gain per feature, (D',)."""
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch; see the class."""
        hidden = F.gelu(self.fc1(self.norm(x)))
        # The gain scales the weights: scaling autocast activations would promote them to float32.
        return F.linear(hidden, self.fc2.weight * self.scale[:, None])


class TokenAttention(Kernel):
    """Layer norm, multi-head self-attention, linear, times a gain per feature. Shape: (N, T, D), kept.

    In a causal host, a token attends to itself and to earlier ones only.

    Source: Vaswani et al., Attention Is All You Need, arXiv:1706.03762.
    """

    def __init__(self, features: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.is_causal = False
        self.norm = nn.LayerNorm(features)
        self.qkv = nn.Linear(features, 3 * features, bias=False)
        self.proj = nn.Linear(features, features, bias=False)
        self.scale = nn.Parameter(torch.ones(features))

    @property
    def output_scale(self) -> nn.Parameter:
        """Gain per feature, (D,)."""
        return self.scale

    def adapt(self, *, activation: str | None, has_bias: bool, is_causal: bool) -> None:  # noqa: ARG002
        """Attend as the host does."""
        self.is_causal = is_causal

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch; see the class."""
        n, t, d = x.shape
        query, key, value = (
            part.reshape(n, t, self.num_heads, d // self.num_heads).transpose(1, 2)
            for part in self.qkv(self.norm(x)).chunk(3, dim=2)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
        return F.linear(attended.transpose(1, 2).reshape(n, t, d), self.proj.weight * self.scale[:, None])


@blueprint(
    category="residual",
    complexity=3,
    kinds={"after", "beside"},
    ranks={1, 2},
    admits=lambda in_shape, _: in_shape[-1] >= _MIN_FEATURES,
    source="adapters, arXiv:1902.00751",
)
def mlp(in_shape: Shape, out_shape: Shape) -> Kernel:
    """Two linear layers through a quarter of the features, at least 8."""
    return BottleneckMLP(in_shape[-1], max(8, 8 * round(out_shape[-1] / 32)), out_shape[-1])


@blueprint(
    category="attention",
    complexity=4,
    kinds={"after", "beside"},
    ranks={2},
    keeps_shape=True,
    min_positions=2,  # a softmax over one position is constant
    admits=lambda in_shape, _: in_shape[-1] >= _MIN_FEATURES,
    source="transformer, arXiv:1706.03762",
)
def self_attention(in_shape: Shape, out_shape: Shape) -> Kernel:  # noqa: ARG001
    """Multi-head self-attention over tokens, with heads of 64 features or more."""
    features = in_shape[-1]
    num_heads = next(heads for heads in range(max(1, features // 64), 0, -1) if features % heads == 0)
    return TokenAttention(features, num_heads=num_heads)
