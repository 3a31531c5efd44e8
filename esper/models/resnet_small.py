"""Small ResNets for CPUs, with configurable widths and depths.

Source: the CIFAR variant of He et al., Deep Residual Learning for Image Recognition, arXiv:1512.03385.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from esper.configs import ModelConfig
from esper.data import DataSpec
from esper.errors import ConfigError
from esper.models.residual import BasicBlock
from esper.models.resnet import describe

__all__ = ["SmallResNet", "build", "describe"]


def build(config: ModelConfig, spec: DataSpec) -> nn.Module:
    """Build a small ResNet; see `build_host`."""
    in_channels, image_size, _ = spec.inputs
    if image_size < 2 ** (len(config.widths) - 1):
        raise ConfigError(
            f"model.widths={config.widths}: {len(config.widths)} stages halve an image of {image_size} pixels to "
            "nothing; use fewer stages"
        )
    return SmallResNet(
        widths=config.widths, depths=config.depths, in_channels=in_channels, num_classes=spec.num_outputs
    )


class SmallResNet(nn.Module):
    """A 3×3 stem and stages `layer1`, `layer2`, … of basic blocks; all but the first halve the image.

    Shape: (N, C, H, W) to (N, num_classes).
    """

    def __init__(self, *, widths: Sequence[int], depths: Sequence[int], in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        inputs = [widths[0], *widths[:-1]]
        self._stages = [f"layer{i + 1}" for i in range(len(widths))]
        for i, (name, depth) in enumerate(zip(self._stages, depths, strict=True)):
            self.add_module(name, _stage(inputs[i], widths[i], depth=depth, stride=1 if i == 0 else 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self._run_stages(x)
        logits = self.fc(torch.flatten(self.avgpool(x), 1))
        assert isinstance(logits, Tensor)
        return logits

    def _run_stages(self, x: Tensor) -> Tensor:
        # Not part of `forward`: torch.compile cannot compile a function that loops over separately compiled blocks.
        for name in self._stages:
            x = self.get_submodule(name)(x)
        return x


def _stage(in_channels: int, channels: int, *, depth: int, stride: int) -> nn.Sequential:
    downsample = None
    if stride != 1 or in_channels != channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
        )
    first = BasicBlock(in_channels, channels, stride=stride, downsample=downsample)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(depth - 1)))
