"""Sites: the places in a network where modules may grow, found by block name and one traced forward pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from esper.costs import Cost
from esper.errors import ConfigError
from esper.kasmina.blocks import AUTO, find_blocks, is_auto
from esper.kasmina.trace import Call, Trace, trace
from esper.urza.kernel import Shape, stride_between

__all__ = ["AUTO", "DEFAULT_KINDS", "Shape", "Site", "SiteKind", "find_blocks", "find_sites"]

SiteKind = Literal["beside", "after", "parallel", "width"]
DEFAULT_KINDS: tuple[SiteKind, ...] = ("beside", "after")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place where a kernel may grow: it reads the input of one host module and adds to the output of another.

    Attributes:
        name: `layer2.0:beside`, `layer2.0:after`, `layer2.0.conv1:parallel`, `layer2.0:width`.
        layer: the entry of `target_layers` that selected it.
        block: name of the host module it belongs to.
        kind: `beside` the block, y = m(x) + f(x); `after` it, y = h + f(h) with h the block's output; `parallel` to a
            convolution and its norm, y = norm(conv(x)) + f(x); or `width`, more channels between the block's first
            and last convolution, y = conv2(relu(norm(conv1(x)))) + f(x), or more hidden units between two linear
            layers, y = fc2(act(fc1(x))) + f(x).
        start: name of the module whose input the kernel reads.
        end: name of the module to whose output the kernel is added; at `after` sites the kernel reads that output.
        in_shape: of the kernel's input: (C, H, W), (T, D), (D,) or of a higher rank.
        out_shape: of the kernel's output.
        norm: `width` of convolutions only: name of the batch norm of the block's inner channels.
        activation: `width` of linear layers only: name in `esper.urza.activations` of the function between them.
        has_bias: likewise: whether the first of these layers has a bias.
        convs: names of the block's convolutions whose input has the block's output size times a stride; excludes, for
            example, the pooled gate of a squeeze-and-excitation. Where the output is (T, D) or (D,), names of the
            linear layers that act at its positions.
        is_rectified: whether the block's output had no negative values, as after a ReLU.
        keeps_shape: whether the block's input and output have one shape.
        is_causal: whether no position of the block's output depends on later ones, as in a language model.
        block_cost: parameters of the block, and its MACs for one example.
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
    activation: str | None = None
    has_bias: bool = True
    convs: frozenset[str] = frozenset()
    is_rectified: bool = True
    keeps_shape: bool = False
    is_causal: bool = False
    block_cost: Cost = Cost(num_parameters=0, num_macs=0)


def find_sites(
    host: nn.Module,
    *,
    target_layers: Sequence[str],
    seeds_per_layer: int,
    input_shape: Shape,
    input_dtype: torch.dtype | None = None,
    kinds: Sequence[str] = DEFAULT_KINDS,
) -> list[Site]:
    """List the sites of a network block by block in forward order.

    A target is a module name or a pattern, matched segment by segment (`layer*.0`). It selects the children of a
    container (`nn.Sequential`, `nn.ModuleList`) and any other module itself as blocks. `["auto"]` selects the blocks
    of a network (see `esper.kasmina.blocks`), except those at which nothing can grow. A block may take and return more
    than a tensor: growing concerns its first argument and its output, or the first item of that. Each block offers, in
    this order:

    - `beside`, if a stride maps its input size to its output size;
    - `after`;
    - `parallel`, for each convolution that is followed by a batch norm;
    - `width`, if it contains convolution, batch norm, ReLU, convolution in a chain, as in ResNet's basic block; or if
      it is or contains a linear layer that one other reads through an activation function, as in an MLP.

    Convolutions of the last two must be ungrouped, padded by half their size and at least 3×3: only a 1×1 convolution
    could be folded into a 1×1 one.

    Args:
        host: the network. Its `nn.TransformerEncoder`s use no nested tensors from now on: hooks cannot read them.
        target_layers: names or patterns.
        seeds_per_layer: maximum number of sites per target, over all kinds.
        input_shape: shape of an example of the network's input.
        input_dtype: its dtype; None: that of the parameters. Whole numbers are ids of tokens.
        kinds: kinds of site to list.

    Raises:
        ConfigError: a target matches no layer; the network fails on such an input; a block is compiled; or a block
            (with `auto`: every block) does not map one tensor (N, …) to another, or does not run exactly once.
    """
    if not target_layers:
        return []
    for module in host.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    try:
        blocks = find_blocks(host, target_layers)
    except ConfigError:
        _require_hooks(host, [""])  # blocks that are compiled may not be found
        raise
    _require_hooks(host, blocks)
    record_calls = not {"parallel", "width"}.isdisjoint(kinds)
    traced = trace(host, blocks, input_shape=input_shape, input_dtype=input_dtype, record_calls=record_calls)
    if not traced.blocks and not traced.rejected:
        traced.rejected = {next(iter(blocks)): "does not run in a forward pass in eval mode"}
    if traced.rejected and not (is_auto(target_layers) and traced.blocks):
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


def _require_hooks(host: nn.Module, blocks: Collection[str]) -> None:
    """Refuse blocks that are compiled, hold what is, or lie in it: hooks inside are not called, or not allowed.

    What is TorchScript within a block has no layers that offer sites, and needs no hooks.
    """
    for name, module in host.named_modules():
        forward = vars(module).get("forward")
        if isinstance(module, torch.jit.ScriptModule):
            kind, remedy = "TorchScript", "the module that it was made from"
        elif (
            hasattr(module, "_orig_mod") or module._compiled_call_impl or hasattr(forward, "_torchdynamo_orig_callable")
        ):
            kind, remedy = "compiled", "it as it is, and set compile_model=true"
        else:
            continue
        if not any(_lies_in(block, name) or (kind == "compiled" and _lies_in(name, block)) for block in blocks):
            continue
        raise ConfigError(
            f"model: {name or 'the network'} is {kind}, so that nothing can grow in it; give {remedy}, or use "
            "morphogenetic=off"
        )


def _lies_in(name: str, other: str) -> bool:
    return not other or f"{name}.".startswith(f"{other}.")


def _sites_of(traced: Trace, name: str, *, layer: str) -> Iterator[Site]:
    """The sites that a block offers, of all kinds."""
    block = traced.blocks[name]
    in_shape, out_shape = block.in_shape, block.out_shape
    common: dict[str, Any] = {"layer": layer, "block": name, "convs": _linear_maps(traced, name)}

    def whole_block(kind: SiteKind, in_shape: Shape) -> Site:
        return Site(
            name=f"{name}:{kind}",
            kind=kind,
            start=name,
            end=name,
            in_shape=in_shape,
            out_shape=out_shape,
            is_rectified=block.is_rectified,
            keeps_shape=block.in_shape == out_shape,
            is_causal=block.is_causal,
            block_cost=block.cost,
            **common,
        )

    if stride_between(in_shape, out_shape) is not None:
        yield whole_block("beside", in_shape)
    yield whole_block("after", out_shape)
    convs = traced.foldable_convs(name)
    for conv in convs:
        if (norm := traced.norm_after(conv)) and norm.within(name):
            yield Site(
                name=f"{conv.name}:parallel",
                kind="parallel",
                start=conv.name,
                end=norm.name,
                in_shape=conv.in_shape,
                out_shape=conv.out_shape,
                **common,
            )
    widths = [*_wider_convs(traced, convs), *_wider_layers(traced, name)]
    for fields in widths[:1]:
        yield Site(name=f"{name}:width", kind="width", **fields, **common)


def _linear_maps(traced: Trace, block: str) -> frozenset[str]:
    """The layers of a block that act at the positions of its output; see `Site.convs`."""
    out_shape = traced.blocks[block].out_shape
    layers = traced.linears if len(out_shape) < 3 else traced.convs
    return frozenset(
        name
        for name, shape in layers.items()
        if f"{name}.".startswith(f"{block}.") and stride_between(shape, out_shape) is not None
    )


def _wider_convs(traced: Trace, convs: Sequence[Call]) -> Iterator[dict[str, Any]]:
    """Fields of `width` sites between two convolutions."""
    for first in convs:
        chain = traced.chain_after(first)
        if chain and chain[1] in convs:
            norm, last = chain
            shapes = {"in_shape": first.in_shape, "out_shape": last.out_shape}
            yield {"start": first.name, "end": last.name, "norm": norm.name, **shapes}


def _wider_layers(traced: Trace, block: str) -> Iterator[dict[str, Any]]:
    """Fields of `width` sites between two linear layers."""
    for hidden in traced.hidden:
        if f"{hidden.first}.".startswith(f"{block}."):
            shapes = {"in_shape": hidden.in_shape, "out_shape": hidden.out_shape}
            yield {
                "start": hidden.first,
                "end": hidden.last,
                "activation": hidden.activation,
                "has_bias": hidden.has_bias,
                **shapes,
            }
