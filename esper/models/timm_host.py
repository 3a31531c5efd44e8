"""Image classifiers of timm, by name."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from esper.configs import ModelConfig
from esper.configs.explain import nearest
from esper.data import DataSpec
from esper.errors import ConfigError, one_line

__all__ = ["build", "describe", "require_known"]


def build(config: ModelConfig, spec: DataSpec) -> nn.Module:
    """Build a network with timm's own stem; see `build_host`.

    Names may have the tag of pretrained weights: `convnext_atto`, `resnet10t.c3_in1k`. timm downloads weights that are
    not in its cache and adapts them to the channels of the images. Networks of fixed input size get that of the images.

    Raises:
        ConfigError: timm is not installed, does not know the name, cannot build the network for such images, or
            cannot load its weights.
    """
    timm = _timm()
    name = config.name
    in_channels, image_size, _ = spec.inputs
    require_known(name)
    options: dict[str, Any] = {"in_chans": in_channels, "num_classes": spec.num_outputs}
    try:
        default = timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = ", ".join(timm.list_pretrained(name.partition(".")[0])) or "none"
        raise ConfigError(f"model.name={name}: timm has no such weights; those of this network are {tags}") from None
    if default is not None and default.fixed_input_size and default.input_size[-1] != image_size:
        options["img_size"] = image_size
    try:
        network = timm.create_model(name, pretrained=config.pretrained, **options)
    except (AssertionError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = one_line(error, max_length=200)
        if config.pretrained:
            raise ConfigError(
                f"model.pretrained=true: timm cannot load weights for {name} ({reason}); run it once where they can be "
                "downloaded, which caches them for huggingface_hub, or set model.pretrained=false"
            ) from None
        raise _unfit(name, in_channels, image_size, reason) from None
    assert isinstance(network, nn.Module)
    _check_output(network, name, spec)
    return network


def require_known(name: str) -> None:
    """Look a network up.

    Raises:
        ConfigError: timm is not installed, or does not know the name.
    """
    timm = _timm()
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models(), num=3) or "; timm.list_models() lists its networks"
        raise ConfigError(f"model.name={name}: timm {timm.__version__} has no such network{hint}")


def describe(_config: ModelConfig, spec: DataSpec, _network: nn.Module) -> dict[str, Any]:
    """Channels of the images and number of classes."""
    return {"in_channels": spec.inputs[0], "num_classes": spec.num_outputs}


def _timm() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError:
        raise ConfigError("model=timm: timm is not installed; run: pip install 'esper-train[timm]'") from None
    assert isinstance(timm, ModuleType)
    return timm


@torch.no_grad()
def _check_output(network: nn.Module, name: str, spec: DataSpec) -> None:
    """Refuse a network that fails on such images, or whose output is not one logit per class."""
    network.eval()
    try:
        logits = network(torch.zeros(1, *spec.inputs))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _unfit(name, spec.inputs[0], spec.inputs[1], one_line(error, max_length=200)) from None
    network.train()
    if not isinstance(logits, Tensor) or logits.shape != (1, spec.num_outputs):
        raise ConfigError(f"model.name={name}: not an image classifier; name a network that gives one logit per class")


def _unfit(name: str, in_channels: int, image_size: int, reason: str) -> ConfigError:
    return ConfigError(
        f"model.name={name}: cannot take images of {image_size} pixels and {in_channels} channels ({reason}); name "
        "another network, or use larger images (dataset.image_size, if the dataset allows it)"
    )
