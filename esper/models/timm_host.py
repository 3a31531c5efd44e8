"""Networks of timm: any image classifier that it has, by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from esper.errors import ConfigError, one_line

__all__ = ["build_timm", "timm_sizes"]


def build_timm(name: str, *, pretrained: bool, in_channels: int, image_size: int, num_classes: int) -> nn.Module:
    """Build a network as timm makes it, with its own stem; initial weights come from the global random generator.

    Args:
        name: timm's, perhaps with the tag of its weights: `convnext_atto`, `resnet10t.c3_in1k`.
        pretrained: load its weights, which timm downloads unless they are in its cache.
        in_channels: channels of the images; pretrained weights are adapted to them.
        image_size: height and width of the images; networks that are made for one size are made for this one.
        num_classes: outputs.

    Raises:
        ConfigError: timm is not installed, does not know the name, cannot make the network for such images, or
            cannot get its weights.
    """
    timm = _timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists those that it has"
        raise ConfigError(f"model.name={name}: timm {timm.__version__} has no such network; {hint}")
    options: dict[str, Any] = {"in_chans": in_channels, "num_classes": num_classes}
    try:
        made_for = timm.get_pretrained_cfg(name)
    except RuntimeError:
        known = ", ".join(timm.list_pretrained(name.partition(".")[0])) or "none"
        raise ConfigError(f"model.name={name}: timm has no such weights; of this network it has {known}") from None
    if made_for is not None and made_for.fixed_input_size and made_for.input_size[-1] != image_size:
        options["img_size"] = image_size
    try:
        network = timm.create_model(name, pretrained=pretrained, **options)
    except (AssertionError, OSError, RuntimeError, TypeError, ValueError) as error:
        if pretrained:
            raise ConfigError(
                f"model.pretrained=true: timm cannot load weights for {name} ({one_line(error, max_length=200)}); run "
                "it once where they can be downloaded, which keeps them in the cache of huggingface_hub, or set "
                "model.pretrained=false"
            ) from None
        raise _unfit(name, in_channels, image_size, one_line(error, max_length=200)) from None
    assert isinstance(network, nn.Module)
    _try_out(network, name, in_channels=in_channels, image_size=image_size, num_classes=num_classes)
    return network


def timm_sizes(name: str, weights: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Channels of the images and number of classes, read off a network's state dict, and the side timm made it for.

    Raises:
        ConfigError: timm is not installed, or does not say which layers are the network's first and last.
    """
    made_for = _timm().get_pretrained_cfg(name)
    layers = [made_for.first_conv or (), made_for.classifier or ()]  # several where several read the images
    ends = [layer if isinstance(layer, str) else next(iter(layer), "") for layer in layers]
    first, last = (weights.get(f"{layer}.weight") for layer in ends)
    if first is None or last is None:
        raise ConfigError(f"model.name={name}: timm does not name its first and last layer, so it cannot be exported")
    return first.shape[1], len(last), made_for.input_size[-1]


def _timm() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError:
        raise ConfigError("model=timm: timm is not installed; run: pip install 'esper-train[timm]'") from None
    assert isinstance(timm, ModuleType)
    return timm


@torch.no_grad()
def _try_out(network: nn.Module, name: str, *, in_channels: int, image_size: int, num_classes: int) -> None:
    """Refuse a network that shrinks such images to nothing, or that gives something else than logits."""
    network.eval()
    try:
        logits = network(torch.zeros(1, in_channels, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _unfit(name, in_channels, image_size, one_line(error, max_length=200)) from None
    network.train()
    if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
        raise ConfigError(f"model.name={name}: it is no image classifier; name a network that gives one logit a class")


def _unfit(name: str, in_channels: int, image_size: int, reason: str) -> ConfigError:
    return ConfigError(
        f"model.name={name}: it cannot take images of {image_size} pixels and {in_channels} channels ({reason}); name "
        "another network, or use larger images (dataset.image_size, where the dataset has it)"
    )
