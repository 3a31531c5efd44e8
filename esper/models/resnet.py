"""ResNets as torchvision's, with the stem that CIFAR's small images need, and ResNet-10.

Source: He et al., Deep Residual Learning for Image Recognition, arXiv:1512.03385.
"""

from __future__ import annotations

import hashlib
import urllib.error
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esper.configs import ModelConfig
from esper.data import DataSpec
from esper.errors import ConfigError
from esper.models.residual import BasicBlock, Bottleneck, ResNet

__all__ = ["build", "describe"]

_SIZES: Mapping[str, tuple[type[BasicBlock] | type[Bottleneck], Sequence[int]]] = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}

_MAX_CIFAR_SIZE = 64
"""Largest images for which stem=auto chooses the CIFAR stem."""


def build(config: ModelConfig, spec: DataSpec) -> nn.Module:
    """Build a ResNet; see `build_host`."""
    in_channels, image_size, _ = spec.inputs
    if config.pretrained and in_channels != 3:
        raise ConfigError(f"model.pretrained=true: the weights take 3 channels, the images have {in_channels}")
    network = ResNet(*_SIZES[config.name])
    if config.pretrained:
        _load_pretrained(network, config.name)
    if spec.num_outputs != network.fc.out_features:
        network.fc = nn.Linear(network.fc.in_features, spec.num_outputs)
    is_small = image_size <= _MAX_CIFAR_SIZE and not config.pretrained
    if config.stem == "cifar" or (config.stem == "auto" and is_small):
        network.conv1 = _conv(in_channels, 3, stride=1)
        network.maxpool = nn.Identity()
    elif in_channels != 3:
        network.conv1 = _conv(in_channels, 7, stride=2)
    return network


def describe(_config: ModelConfig, _spec: DataSpec, network: nn.Module) -> dict[str, Any]:
    """Sizes of a network, which may have grown, for the model.json of an export: channels, classes, its stages.

    Args:
        network: what `build` made, folded.
    """
    stages = {name: stage for name, stage in network.named_children() if isinstance(stage, nn.Sequential)}
    conv, classifier = network.get_parameter("conv1.weight"), network.get_parameter("fc.weight")
    return {
        "stem": "cifar" if conv.shape[2] == 3 else "imagenet",
        "in_channels": conv.shape[1],
        "num_classes": len(classifier),
        "depths": {name: len(stage) for name, stage in stages.items()},
        "inner_widths": {name: _inner_widths(stage) for name, stage in stages.items()},
    }


def _inner_widths(stage: nn.Module) -> list[int]:
    """Channels between the convolutions of each block."""
    blocks = [block for block in stage.modules() if isinstance(block, BasicBlock | Bottleneck)]
    return [block.conv1.out_channels for block in blocks]


def _conv(in_channels: int, size: int, *, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, 64, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _load_pretrained(network: nn.Module, name: str) -> None:
    import torchvision  # lazily: it takes time to import

    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    checksum = file.stem.rpartition("-")[2]
    # torch.hub verifies downloads, but not a file that is already there, such as one copied by hand.
    if file.is_file() and not hashlib.sha256(file.read_bytes()).hexdigest().startswith(checksum):
        raise ConfigError(
            f"model.pretrained=true: {file} is damaged (its SHA-256 does not begin with {checksum}); remove it, or put "
            "an intact copy there"
        )
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"model.pretrained=true: cannot download {file.name} ({error}); put that file in {file.parent}, or set "
            "model.pretrained=false"
        ) from None
    network.load_state_dict(state)
