"""Host networks by name."""

from __future__ import annotations

import hashlib
import urllib.error
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from esper.configs import ModelConfig
from esper.errors import ConfigError
from esper.models.resnet_small import SmallResNet
from esper.models.timm_host import build_timm

__all__ = ["build_host"]

_SMALL_IMAGE = 64
"""Largest side for which stem=auto takes the CIFAR stem."""


def build_host(config: ModelConfig, *, in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """Build a network; its initial weights come from the global random generator.

    Args:
        config: which one.
        in_channels: channels of the images.
        image_size: height and width of the images.
        num_classes: outputs.

    Raises:
        ConfigError: the images are too small, or the pretrained weights do not fit or are not there; for timm's see
            `build_timm`.
    """
    if config.source == "timm":
        return build_timm(
            config.name,
            pretrained=config.pretrained,
            in_channels=in_channels,
            image_size=image_size,
            num_classes=num_classes,
        )
    if config.name == "resnet_small":
        if image_size < 2 ** (len(config.widths) - 1):
            raise ConfigError(
                f"model.widths={config.widths}: {len(config.widths)} stages halve an image of {image_size} pixels to "
                "nothing; use fewer stages"
            )
        return SmallResNet(widths=config.widths, depths=config.depths, in_channels=in_channels, num_classes=num_classes)
    if config.pretrained and in_channels != 3:
        raise ConfigError(f"model.pretrained=true: the weights take 3 channels, the images have {in_channels}")
    if config.name == "resnet10":
        if config.pretrained:
            raise ConfigError("model.pretrained=true: resnet10 has no pretrained weights; use model=resnet18")
        network = ResNet(BasicBlock, [1, 1, 1, 1])
    else:
        network = torchvision.models.get_model(config.name, weights=None)
    if config.pretrained:
        _load_pretrained(network, config.name)
    if num_classes != network.fc.out_features:
        network.fc = nn.Linear(network.fc.in_features, num_classes)
    small = image_size <= _SMALL_IMAGE and not config.pretrained
    if config.stem == "cifar" or (config.stem == "auto" and small):
        network.conv1 = _conv(in_channels, 3, stride=1)
        network.maxpool = nn.Identity()
    elif in_channels != 3:
        network.conv1 = _conv(in_channels, 7, stride=2)
    assert isinstance(network, nn.Module)
    return network


def _conv(in_channels: int, size: int, *, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, 64, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _load_pretrained(network: nn.Module, name: str) -> None:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    checksum = file.stem.rpartition("-")[2]
    # torch.hub checks what it downloads, but not a file that is there already, such as one put there by hand.
    if file.is_file() and not hashlib.sha256(file.read_bytes()).hexdigest().startswith(checksum):
        raise ConfigError(
            f"model.pretrained=true: {file} is damaged (its SHA-256 does not begin with {checksum}); remove it or put "
            "the right file there"
        )
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"model.pretrained=true: cannot download {file.name} ({error}); put that file in {file.parent}, or set "
            "model.pretrained=false"
        ) from None
    network.load_state_dict(state)
