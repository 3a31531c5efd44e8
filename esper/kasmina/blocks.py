"""Blocks: the modules of a network at which something may grow, found by name or by layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from esper.configs.explain import nearest
from esper.errors import ConfigError

__all__ = ["AUTO", "find_blocks", "is_auto", "is_container"]

AUTO = "auto"
"""`target_layers=[auto]` finds the blocks of a network."""

_LAYOUTS = (
    "layer[0-9].[0-9]*",  # ResNet and its kin, of torchvision and timm
    "s[0-9].b[0-9]*",  # RegNet
    "stages.[0-9]*.blocks.[0-9]*",  # ConvNeXt, ResNetV2, MetaFormer, FastViT, HGNet, MaxViT
    "stages.[0-9]*.[0-9]*",  # NFNet, GENet, RepVGG, MobileViT
    "blocks.[0-9]*.[0-9]*",  # EfficientNet, MobileNet, MixNet, GhostNet
    "layers.[0-9]*.blocks.[0-9]*",  # FocalNet, Swin
    "body.layer[0-9].[0-9]*",  # TResNet
    "stage[0-9].[0-9]*",  # Visformer
    "blocks.[0-9]*",  # ConvMixer, Xception, ViT
    "features.[0-9]*",  # ReXNet, SelecSLS, Inception-v4
)
"""Name patterns of blocks; a network's layout is the first pattern that matches a block with layers inside."""


def find_blocks(host: nn.Module, target_layers: Sequence[str]) -> dict[str, str]:
    """Map each block of the target layers to the first target that selected it; see `find_sites`."""
    modules = dict(host.named_modules())
    top = [name for name in modules if name and "." not in name]
    if is_auto(target_layers):
        return _blocks_of_layout(modules, top)
    blocks: dict[str, str] = {}
    for target in target_layers:
        matches = [name for name in modules if name and _matches(name, target)]
        if not matches:
            raise ConfigError(
                f"model.target_layers: {target!r} matches no layer{nearest(target, top)} (the network has "
                f"{', '.join(top)}, and the layers inside them)"
            )
        for name in matches:
            children = [f"{name}.{child}" for child, _ in modules[name].named_children()]
            for member in children if is_container(modules[name]) else [name]:
                blocks.setdefault(member, target)
    return blocks


def is_auto(target_layers: Sequence[str]) -> bool:
    """Whether the blocks are to be found by the network's layout."""
    return list(target_layers) == [AUTO]


def is_container(module: nn.Module) -> bool:
    """Whether a module only holds blocks; subclasses of `ModuleDict`, such as DenseNet's, compute."""
    return isinstance(module, nn.Sequential | nn.ModuleList) or type(module) is nn.ModuleDict


def _blocks_of_layout(modules: dict[str, nn.Module], top: list[str]) -> dict[str, str]:
    """Map each block of a network to its stage.

    Blocks are those of a known layout (see `_LAYOUTS`), else the repeated modules of its containers, else those that
    are its attributes, else all linear and convolutional layers but the last.
    """
    for layout in _LAYOUTS:
        blocks = [name for name, module in modules.items() if _matches(name, layout) and _has_layers(module)]
        if blocks:
            return {name: name.rpartition(".")[0] for name in blocks}
    if blocks := _repeated_blocks(modules) or _repeated_attributes(modules[""]) or _plain_layers(modules):
        return {name: name.rpartition(".")[0] or name for name in blocks}
    raise ConfigError(
        f"model.target_layers=[{AUTO}]: the layout of this network is not known; name the layers that may grow (it has "
        f"{', '.join(top) or 'none'}, and the layers inside them), or train it as it is with morphogenetic=off"
    )


def _repeated_blocks(modules: dict[str, nn.Module]) -> list[str]:
    """The modules with layers inside of each outermost container that holds two or more of one class."""
    found: list[str] = []
    for name, module in modules.items():
        if not is_container(module) or name.startswith(tuple(f"{b}." for b in found)):
            continue
        prefix = f"{name}." if name else ""
        blocks = {prefix + child: block for child, block in module.named_children() if _has_layers(block)}
        if max(Counter(map(type, blocks.values())).values(), default=0) > 1:
            found += blocks
    return found


def _repeated_attributes(host: nn.Module) -> list[str]:
    """The network's own attributes with layers inside that share their class with another."""
    blocks = {name: child for name, child in host.named_children() if _has_layers(child)}
    counts = Counter(map(type, blocks.values()))
    return [name for name, block in blocks.items() if counts[type(block)] > 1]


def _plain_layers(modules: dict[str, nn.Module]) -> list[str]:
    return [name for name, module in modules.items() if name and isinstance(module, nn.Linear | nn.Conv2d)][:-1]


def _has_layers(module: nn.Module) -> bool:
    return any(True for _ in module.children()) and any(True for _ in module.parameters())


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
