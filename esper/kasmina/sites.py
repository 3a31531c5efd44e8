"""Where a network may grow: the blocks of its target layers, found by name and measured by one forward pass."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from esper.errors import ConfigError
from esper.kasmina.trace import Trace, trace
from esper.urza.kernel import Shape, stride_between

__all__ = ["AUTO", "DEFAULT_KINDS", "Shape", "Site", "SiteKind", "find_blocks", "find_sites"]

SiteKind = Literal["beside", "after", "parallel", "width"]
DEFAULT_KINDS: tuple[SiteKind, ...] = ("beside", "after")
AUTO = "auto"
"""The one entry of `target_layers` that stands for the blocks of a known layout."""

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
"""How networks name their blocks; a network has the first layout of which it has a block that is made of layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place where a module may grow: it reads the input of one module of the host and adds to another's output.

    Attributes:
        name: `layer2.0:beside`, `layer2.0:after`, `layer2.0.conv1:parallel`, `layer2.0:width`.
        layer: the entry of `target_layers` that selected it.
        block: name of the host's module it belongs to.
        kind: `beside` the block, y = m(x) + f(x); `after` it, y = h + f(h), which reads the block's output;
            `parallel` to a convolution and its norm, y = norm(conv(x)) + f(x); or in the `width` of the channels
            between the block's first convolution and its last, y = conv2(relu(norm(conv1(x)))) + f(x).
        start: name of the module whose input the kernel reads.
        end: name of the module to whose output it is added; for `after` it reads that output.
        in_shape: (C, H, W) of the kernel's input.
        out_shape: (C, H, W) of the kernel's output.
        norm: `width` only: name of the batch norm of the block's inner channels.
        convs: names of the block's convolutions whose input lies over the block's output, position by position or
            at a stride; the gate of a squeeze-and-excitation, which reads means, is none of them.
        is_rectified: whether nothing in the block's output was negative, as behind a ReLU.
    """

    name: str
    layer: str
    block: str
    kind: SiteKind
    start: str
    end: str
    in_shape: Shape
    out_shape: Shape
    norm: str | None = None
    convs: frozenset[str] = frozenset()
    is_rectified: bool = True


def find_sites(
    host: nn.Module,
    *,
    target_layers: Sequence[str],
    seeds_per_layer: int,
    input_shape: Shape,
    kinds: Sequence[str] = DEFAULT_KINDS,
) -> list[Site]:
    """List the sites of a network block by block in forward order.

    A target is a module's name or a pattern, matched segment by segment (`layer*.0`). A container
    (`nn.Sequential`, `nn.ModuleList`) stands for its children, anything else for itself: a block. `["auto"]` stands
    for the blocks of any network that names them in one of the usual ways, without those at which nothing can grow.
    Each block offers, in this order: a site beside it, where one stride leads from its input's size to its output's;
    one after it; one parallel to each of its convolutions that a batch norm follows; and one in its width where two
    convolutions stand in a chain with a batch norm and a ReLU between them, as in ResNet's basic block. Convolutions
    count that are ungrouped, padded by half their size and at least 3×3: no branch but a 1×1 convolution would fold
    into a 1×1 one.

    Args:
        host: the network.
        target_layers: names or patterns.
        seeds_per_layer: most sites for one target, of all kinds together.
        input_shape: (C, H, W) of the network's input.
        kinds: kinds of site wanted.

    Raises:
        ConfigError: a target matches nothing; or a block, with `auto` every block, does not map one image-like tensor
            to another or runs more than once.
    """
    blocks = find_blocks(host, target_layers)
    inside = not {"parallel", "width"}.isdisjoint(kinds)
    seen = trace(host, blocks, input_shape=input_shape, inside=inside)
    if seen.refused and not (_is_auto(target_layers) and seen.blocks):
        name, reason = next(iter(seen.refused.items()))
        raise ConfigError(
            f"model.target_layers: {name!r} {reason}; nothing can grow there: name other layers, or train the network "
            "as it is with morphogenetic=off"
        )
    counts: dict[str, int] = {}
    sites: dict[str, Site] = {}
    for block in seen.blocks:
        for site in _offered(seen, block, layer=blocks[block]):
            if site.kind in kinds and site.name not in sites and counts.get(site.layer, 0) < seeds_per_layer:
                counts[site.layer] = counts.get(site.layer, 0) + 1
                sites[site.name] = site
    return list(sites.values())


def _offered(seen: Trace, block: str, *, layer: str) -> Iterator[Site]:
    in_shape, out_shape = seen.blocks[block]
    over = frozenset(
        name
        for name, shape in seen.convs.items()
        if f"{name}.".startswith(f"{block}.") and stride_between(shape, out_shape) is not None
    )

    def whole(kind: SiteKind, in_shape: Shape) -> Site:
        return Site(
            name=f"{block}:{kind}",
            layer=layer,
            block=block,
            kind=kind,
            start=block,
            end=block,
            in_shape=in_shape,
            out_shape=out_shape,
            convs=over,
            is_rectified=block in seen.rectified,
        )

    if stride_between(in_shape, out_shape) is not None:
        yield whole("beside", in_shape)
    yield whole("after", out_shape)
    convs = seen.convolutions(block)
    for conv in convs:
        if (norm := seen.norm_after(conv)) and norm.within(block):
            yield Site(
                name=f"{conv.name}:parallel",
                layer=layer,
                block=block,
                kind="parallel",
                start=conv.name,
                end=norm.name,
                in_shape=conv.in_shape,
                out_shape=conv.out_shape,
                convs=over,
            )
    chains = ((conv, *chain) for conv in convs if (chain := seen.chained_after(conv)) and chain[1] in convs)
    for first, norm, last in itertools.islice(chains, 1):
        yield Site(
            name=f"{block}:width",
            layer=layer,
            block=block,
            kind="width",
            start=first.name,
            end=last.name,
            in_shape=first.in_shape,
            out_shape=last.out_shape,
            norm=norm.name,
            convs=over,
        )


def find_blocks(host: nn.Module, target_layers: Sequence[str]) -> dict[str, str]:
    """Map the name of each block of the target layers to the target that selected it first; see `find_sites`."""
    modules = dict(host.named_modules())
    top = [name for name in modules if name and "." not in name]
    if _is_auto(target_layers):
        return _blocks_of_layout(modules, top)
    blocks: dict[str, str] = {}
    for target in target_layers:
        matches = [name for name in modules if name and _matches(name, target)]
        if not matches:
            near = difflib.get_close_matches(target, top, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"model.target_layers: {target!r} matches no layer{hint} (the network has {', '.join(top)}, and the "
                "layers inside them)"
            )
        for name in matches:
            module = modules[name]
            if isinstance(module, nn.Sequential | nn.ModuleList):
                members = [f"{name}.{child}" for child, _ in module.named_children()]
            else:
                members = [name]
            for member in members:
                blocks.setdefault(member, target)
    return blocks


def _is_auto(target_layers: Sequence[str]) -> bool:
    return list(target_layers) == [AUTO]


def _blocks_of_layout(modules: dict[str, nn.Module], top: list[str]) -> dict[str, str]:
    """The blocks of the first of `_LAYOUTS` that a network has, each with the stage that it stands in."""
    for layout in _LAYOUTS:
        blocks = [name for name, module in modules.items() if _matches(name, layout) and _has_layers(module)]
        if blocks:
            return {name: name.rpartition(".")[0] for name in blocks}
    raise ConfigError(
        f"model.target_layers=[{AUTO}]: this network names its blocks in no way that is known here; name the layers "
        f"that may grow (it has {', '.join(top)}, and the layers inside them), or train it as it is with "
        "morphogenetic=off"
    )


def _has_layers(module: nn.Module) -> bool:
    return any(True for _ in module.children()) and any(True for _ in module.parameters())


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
