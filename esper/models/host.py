"""Host networks by name.

A family of networks is a module with the functions of `resnet`: `build`, `infer_sizes` and `describe`. To add one: its
file here, a line in `HOSTS` of esper/configs/model.py, and conf/model/NAME.yaml.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from torch import nn

from esper.configs import ModelConfig
from esper.configs.model import HOSTS, TIMM

__all__ = ["build_host", "host_family"]


def host_family(config: ModelConfig) -> ModuleType:
    """Import the module of the configured network."""
    return importlib.import_module((TIMM if config.source == "timm" else HOSTS[config.name]).module)


def build_host(config: ModelConfig, *, in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """Build a network; its initial weights come from the global random generator.

    Args:
        config: which network.
        in_channels: channels of the images.
        image_size: height and width of the images.
        num_classes: outputs.

    Raises:
        ConfigError: the network cannot take such images, or its pretrained weights do not fit or cannot be loaded.
    """
    network: nn.Module = host_family(config).build(
        config, in_channels=in_channels, image_size=image_size, num_classes=num_classes
    )
    return network
