"""Host networks by name. To add a family: its file, a line in `HOSTS` of esper/configs/model.py, and its YAML."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from torch import Tensor, nn

from esper.configs import ModelConfig
from esper.configs.model import HOSTS, TIMM

__all__ = ["HostFamily", "build_host", "host_family"]


class HostFamily(Protocol):
    """Functions that the module of a host family offers."""

    def build(self, config: ModelConfig, *, in_channels: int, image_size: int, num_classes: int) -> nn.Module:
        """See `build_host`."""

    def infer_sizes(
        self, config: ModelConfig, weights: Mapping[str, Tensor], *, image_size: int | None
    ) -> tuple[int, int, int]:
        """Arguments of `build` (without pretrained weights) for a network that loads these weights.

        Args:
            config: which network.
            weights: its state dict.
            image_size: side of the images that it was trained on; None: unknown.

        Returns:
            `in_channels`, `image_size` and `num_classes`.

        Raises:
            ConfigError: they cannot be inferred.
        """

    def describe(self, config: ModelConfig, network: nn.Module) -> dict[str, Any]:
        """Sizes of a network, for model.json of an export."""


def host_family(config: ModelConfig) -> HostFamily:
    """Import the module of the configured network."""
    info = TIMM if config.source == "timm" else HOSTS[config.name]
    return cast("HostFamily", importlib.import_module(info.module))


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
    return host_family(config).build(config, in_channels=in_channels, image_size=image_size, num_classes=num_classes)
