"""Sites: the places in a network where modules may grow, found by block name and one traced forward pass."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from esper.configs.explain import nearest
from esper.errors import ConfigError
from esper.kasmina.trace import Trace, trace
from esper.urza.kernel import Shape, stride_between

__all__ = ["AUTO", "DEFAULT_KINDS", "Shape", "Site", "SiteKind", "find_blocks", "find_sites"]

SiteKind = Literal["beside", "after", "parallel", "width"]
DEFAULT_KINDS: tuple[SiteKind, ...] = ("beside", "after")
AUTO = "auto"
"""`target_layers=[auto]` selects the blocks of any network whose layout is known."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place where a kernel may grow: it reads the input of one host module and adds to the output of another.

    Attributes:
        name: `layer2.0:beside`, `layer2.0:after`, `layer2.0.conv1:parallel`, `layer2.0:width`.
        layer: the entry of `target_layers` that selected it.
        block: name of the host module it belongs to.
        kind: `beside` the block, y = m(x) + f(x); `after` it, y = h + f(h) with h the block's output; `parallel` to a
            convolution and its norm, y = norm(conv(x)) + f(x); or `width`, more channels between the block's first
            and last convolution, y = conv2(relu(norm(conv1(x)))) + f(x).
        start: name of the module whose input the kernel reads.
        end: name of the module to whose output the kernel is added; at `after` sites the kernel reads that output.
        in_shape: (C, H, W) of the kernel's input.
        out_shape: (C, H, W) of the kernel's output.
        norm: `width` only: name of the batch norm of the block's inner channels.
        convs: names of the block's convolutions whose input has the block's output size times a stride; excludes, for
            example, the pooled gate of a squeeze-and-excitation.
        is_rectified: whether the block's output had no negative values, as after a ReLU.
        keeps_shape: whether the block's input and output have one shape.
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
    keeps_shape: bool = False


def find_sites(
    host: nn.Module,
    *,
    target_layers: Sequence[str],
    seeds_per_layer: int,
    input_shape: Shape,
    kinds: Sequence[str] = DEFAULT_KINDS,
) -> list[Site]:
    """List the sites of a network block by block in forward order.

    A target is a module name or a pattern, matched segment by segment (`layer*.0`). It selects the children of a
    container (`nn.Sequential`, `nn.ModuleList`) and any other module itself as blocks. `["auto"]` selects the blocks
    of any network with a known layout, except those at which nothing can grow. Each block offers, in this order:

    - `beside`, if a stride maps its input size to its output size;
    - `after`;
    - `parallel`, for each convolution that is followed by a batch norm;
    - `width`, if it contains convolution, batch norm, ReLU, convolution in a chain, as in ResNet's basic block.

    The last two need convolutions that are ungrouped, padded by half their size and at least 3×3: only a 1×1
    convolution could be folded into a 1×1 one.

    Args:
        host: the network.
        target_layers: names or patterns.
        seeds_per_layer: maximum number of sites per target, over all kinds.
        input_shape: (C, H, W) of the network's input.
        kinds: kinds of site to list.

    Raises:
        ConfigError: a target matches no layer; or a block (with `auto`: every block) does not map one (N, C, H, W)
            tensor to another, or runs more than once.
    """
    blocks = find_blocks(host, target_layers)
    record_calls = not {"parallel", "width"}.isdisjoint(kinds)
    traced = trace(host, blocks, input_shape=input_shape, record_calls=record_calls)
    if traced.rejected and not (_is_auto(target_layers) and traced.blocks):
        name, reason = next(iter(traced.rejected.items()))
        raise ConfigError(
            f"model.target_layers: {name!r} {reason}; nothing can grow there: name other layers, or train the network "
            "as it is with morphogenetic=off"
        )
    counts: dict[str, int] = {}
    sites: dict[str, Site] = {}
    for block in traced.blocks:
        for site in _sites_of(traced, block, layer=blocks[block]):
            if site.kind in kinds and site.name not in sites and counts.get(site.layer, 0) < seeds_per_layer:
                counts[site.layer] = counts.get(site.layer, 0) + 1
                sites[site.name] = site
    return list(sites.values())


def _sites_of(traced: Trace, block: str, *, layer: str) -> Iterator[Site]:
    """The sites that a block offers, of all kinds."""
    in_shape, out_shape = traced.blocks[block]
    block_convs = frozenset(
        name
        for name, shape in traced.convs.items()
        if f"{name}.".startswith(f"{block}.") and stride_between(shape, out_shape) is not None
    )

    def whole_block(kind: SiteKind, in_shape: Shape) -> Site:
        return Site(
            name=f"{block}:{kind}",
            layer=layer,
            block=block,
            kind=kind,
            start=block,
            end=block,
            in_shape=in_shape,
            out_shape=out_shape,
            convs=block_convs,
            is_rectified=block in traced.rectified,
            keeps_shape=traced.blocks[block][0] == traced.blocks[block][1],
        )

    if stride_between(in_shape, out_shape) is not None:
        yield whole_block("beside", in_shape)
    yield whole_block("after", out_shape)
    convs = traced.foldable_convs(block)
    for conv in convs:
        if (norm := traced.norm_after(conv)) and norm.within(block):
            yield Site(
                name=f"{conv.name}:parallel",
                layer=layer,
                block=block,
                kind="parallel",
                start=conv.name,
                end=norm.name,
                in_shape=conv.in_shape,
                out_shape=conv.out_shape,
                convs=block_convs,
            )
    chains = ((conv, *chain) for conv in convs if (chain := traced.chain_after(conv)) and chain[1] in convs)
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
            convs=block_convs,
        )


def find_blocks(host: nn.Module, target_layers: Sequence[str]) -> dict[str, str]:
    """Map each block of the target layers to the first target that selected it; see `find_sites`."""
    modules = dict(host.named_modules())
    top = [name for name in modules if name and "." not in name]
    if _is_auto(target_layers):
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
    """Map each block of the network's layout (see `_LAYOUTS`) to its stage."""
    for layout in _LAYOUTS:
        blocks = [name for name, module in modules.items() if _matches(name, layout) and _has_layers(module)]
        if blocks:
            return {name: name.rpartition(".")[0] for name in blocks}
    raise ConfigError(
        f"model.target_layers=[{AUTO}]: the layout of this network is not known; name the layers that may grow (it has "
        f"{', '.join(top)}, and the layers inside them), or train it as it is with morphogenetic=off"
    )


def _has_layers(module: nn.Module) -> bool:
    return any(True for _ in module.children()) and any(True for _ in module.parameters())


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
