"""Blocks: the modules of a network at which something may grow, found by name or by layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from esper.configs.explain import nearest
from esper.errors import ConfigError

__all__ = ["AUTO", "find_blocks", "is_auto", "is_container"]

AUTO = "auto"
"""`target_layers=[auto]` finds the blocks of a network."""

_LAYOUTS = (
    "layer[0-9].[0-9]*",  # ResNet and its kin, of torchvision and timm
    "s[0-9].b[0-9]*",  # RegNet
    "stages.[0-9]*.blocks.[0-9]*",  # ConvNeXt, ResNetV2, MetaFormer, FastViT, HGNet, MaxViT
    "stages.[0-9]*.layers.[0-9]*",  # ResNet, RegNet and ConvNeXt of transformers
    "stages.[0-9]*.[0-9]*",  # NFNet, GENet, RepVGG, MobileViT
    "blocks.[0-9]*.[0-9]*",  # EfficientNet, MobileNet, MixNet, GhostNet
    "layers.[0-9]*.blocks.[0-9]*",  # FocalNet, Swin
    "body.layer[0-9].[0-9]*",  # TResNet
    "stage[0-9].[0-9]*",  # Visformer
    "blocks.[0-9]*",  # ConvMixer, Xception, ViT
    "features.[0-9]*.[0-9]*",  # EfficientNet and ConvNeXt of torchvision
    "features.[0-9]*",  # ReXNet, SelecSLS, Inception-v4
)
"""Name patterns of blocks; a layout is the first pattern that matches a block with layers inside.

It is that of the network, or of a network inside it, as in `self.backbone = timm.create_model(…)`.
"""


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

    Blocks are those of a known layout (see `_LAYOUTS`) or the repeated modules of containers, of whatever is nearest to
    the network; else modules of one class that are attributes of one module; else all linear and convolutional layers
    but the last.
    """
    host = modules[""]
    blocks = (
        _known_blocks(host) or list(_nested_blocks(host)) or list(_nested_attributes(host)) or _plain_layers(modules)
    )
    if blocks:
        return {name: name.rpartition(".")[0] or name for name in blocks}
    raise ConfigError(
        f"model.target_layers=[{AUTO}]: the layout of this network is not known; name the layers that may grow (it has "
        f"{', '.join(top) or 'none'}, and the layers inside them), or train it as it is with morphogenetic=off"
    )


def _known_blocks(module: nn.Module) -> list[str]:
    """The blocks of a known layout."""
    modules = dict(module.named_modules())
    for layout in _LAYOUTS:
        if blocks := [name for name, block in modules.items() if _matches(name, layout) and _has_layers(block)]:
            return blocks
    return []


def _nested_blocks(module: nn.Module) -> Iterator[str]:
    """The blocks of a container of repeated modules, or of a known layout; else those of each module inside."""
    yield from (_repeated_blocks(module) if is_container(module) else _known_blocks(module)) or _inside(
        module, _nested_blocks
    )


def _nested_attributes(module: nn.Module) -> Iterator[str]:
    """The attributes with layers inside that share their class with another one of the same module."""
    children = _with_layers(module)
    counts = Counter(map(type, children.values()))
    found = [name for name, child in children.items() if counts[type(child)] > 1]
    yield from found or _inside(module, _nested_attributes)


def _inside(module: nn.Module, search: Callable[[nn.Module], Iterator[str]]) -> Iterator[str]:
    """What a search finds in the children of a module, by name in the module."""
    for name, child in module.named_children():
        yield from (f"{name}.{block}" for block in search(child))


def _repeated_blocks(container: nn.Module) -> list[str]:
    """The modules with layers inside of a container that holds two or more of one class, or of its stages.

    A stage is a container in it that is not run itself, or any of them if one holds repeated modules, too.
    """
    children = _with_layers(container)
    if max(Counter(map(type, children.values())).values(), default=0) < 2:
        return []
    stages = {name: child for name, child in children.items() if is_container(child)}
    if any(not isinstance(stage, nn.Sequential) or _repeated_blocks(stage) for stage in stages.values()):
        return [
            f"{name}.{block}"
            for name, stage in stages.items()
            for block in _repeated_blocks(stage) or _with_layers(stage)
        ]
    return list(children)


def _with_layers(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in module.named_children() if _has_layers(child)}


def _plain_layers(modules: dict[str, nn.Module]) -> list[str]:
    return [name for name, module in modules.items() if name and _is_layer(module)][:-1]


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is a linear or convolutional layer; that of attention is read, not run."""
    return isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, NonDynamicallyQuantizableLinear)


def _has_layers(module: nn.Module) -> bool:
    """Whether a module has layers with parameters inside, as recurrent ones do without being made of others."""
    has_children = any(True for _ in module.children()) and any(True for _ in module.parameters())
    return has_children or isinstance(module, nn.RNNBase)


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
