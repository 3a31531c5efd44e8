"""More inner channels for a block, as a path parallel to the existing ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.urza.activations import ACTIVATIONS
from esper.urza.kernel import Kernel, Shape, blueprint
from esper.urza.residual import convolution, stride_of

__all__ = ["HiddenUnits", "InnerChannels", "widen"]


class InnerChannels(Kernel):
    """3×3, norm, ReLU, 3×3, times a gain per channel: added to the output of a block's last convolution.

    The sum equals the block with old and new channels concatenated; host weights, statistics and optimizer state do not
    change.

    Shape: (N, C, H, W) to (N, C', H/s, W/s), before the block's last norm.
    Source: function-preserving widening, Net2Net, arXiv:1511.05641.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, width, 3, stride=stride)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, out_channels, 3)
        self.scale = nn.Parameter(torch.ones(out_channels))

    @property
    def output_scale(self) -> nn.Parameter:
        """Gain per channel, (C',)."""
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch; see the class."""
        # The gain scales the weights: scaling autocast activations would promote them to float32.
        weight = self.conv2.weight * self.scale[:, None, None, None]
        return F.conv2d(torch.relu(self.norm(self.conv1(x))), weight, padding=1)


class HiddenUnits(Kernel):
    """Linear layer, the host's activation, linear layer, times a gain per feature: added to the output of an MLP.

    The sum equals the MLP with old and new hidden units concatenated, without the host's dropout between them.

    Shape: (N, T, D) to (N, T, D'), or (N, D) to (N, D').
    """

    def __init__(self, in_features: int, width: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, width)
        self.fc2 = nn.Linear(width, out_features, bias=False)
        self.scale = nn.Parameter(torch.ones(out_features))
        self.activation = "gelu"

    @property
    def output_scale(self) -> nn.Parameter:
        """Gain per feature, (D',)."""
        return self.scale

    def adapt(self, *, activation: str | None, has_bias: bool, is_causal: bool) -> None:  # noqa: ARG002
        """Use the host's activation, and a bias if it has one, so that folding adds no parameter."""
        self.activation = activation or self.activation
        if not has_bias:
            self.fc1.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch; see the class."""
        hidden = ACTIVATIONS[self.activation](self.fc1(x))
        return F.linear(hidden, self.fc2.weight * self.scale[:, None])


@blueprint(
    category="residual",
    complexity=4,
    kinds={"width"},
    ranks={1, 2, 3},
    foldable=True,
    source="Net2Net, arXiv:1511.05641",
)
def widen(in_shape: Shape, out_shape: Shape) -> Kernel:
    """Half as many inner channels again, in multiples of 8."""
    # Tensor cores need multiples of 8.
    if len(in_shape) == 3:  # a basic block has as many inner as output channels
        width = max(8, 8 * round(out_shape[0] / 16))
        return InnerChannels(in_shape[0], width, out_shape[0], stride=stride_of(in_shape, out_shape))
    # A transformer's MLP has four times as many hidden as output features; of others, the size is not known here.
    size = 4 * out_shape[-1] if len(in_shape) == 2 else max(in_shape[-1], out_shape[-1])
    return HiddenUnits(in_shape[-1], max(8, 8 * round(size / 16)), out_shape[-1])
