"""Host networks by name.

A family of networks is a module with the functions of `resnet`: `build` and `describe`. To add one: its file here, a
line in `HOSTS` of esper/configs/model.py, and conf/model/NAME.yaml.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from torch import nn

from esper.configs import ModelConfig
from esper.configs.model import HOSTS, PLUGIN, TIMM
from esper.data import DataSpec
from esper.errors import ConfigError

__all__ = ["build_host", "host_family"]


def host_family(config: ModelConfig) -> ModuleType:
    """Import the module of the configured network."""
    others = {"timm": TIMM, "plugin": PLUGIN}
    return importlib.import_module((others.get(config.source) or HOSTS[config.name]).module)


def build_host(config: ModelConfig, spec: DataSpec) -> nn.Module:
    """Build a network; its initial weights come from the global random generator.

    Args:
        config: which network.
        spec: inputs and outputs that the data ask for.

    Raises:
        ConfigError: the network cannot take such inputs, or its pretrained weights do not fit or cannot be loaded.
    """
    if config.source != "plugin" and config.name != "gpt":
        _require_images(config, spec)
    network: nn.Module = host_family(config).build(config, spec)
    return network


def _require_images(config: ModelConfig, spec: DataSpec) -> None:
    if len(spec.inputs) != 3:
        raise ConfigError(
            f"model={config.name}: reads images, but an example of the data has the shape {spec.inputs}; give a "
            "network of your own: model=plugin, or fit(model=…)"
        )
