"""Where a network may grow: the blocks of its target layers, found by name and measured by one forward pass."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from esper.errors import ConfigError
from esper.urza.kernel import Shape, stride_between

__all__ = ["Shape", "Site", "SiteKind", "find_blocks", "find_sites"]

SiteKind = Literal["after", "beside"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place where a module may grow.

    Attributes:
        name: `<block>:<kind>`, e.g. `layer2.0:beside`.
        layer: the entry of `target_layers` that selected it.
        block: name of the host's module it is attached to.
        kind: `after` the block (y = h + f(h)) or `beside` it (y = m(x) + g(x)).
        in_shape: (C, H, W) of the kernel's input.
        out_shape: (C, H, W) of the kernel's output.
    """

    name: str
    layer: str
    block: str
    kind: SiteKind
    in_shape: Shape
    out_shape: Shape


def find_sites(
    host: nn.Module, *, target_layers: Sequence[str], seeds_per_layer: int, input_shape: Shape
) -> list[Site]:
    """List the sites of a network in forward order.

    A target is a module's name or a pattern, matched segment by segment (`layer*.0`). A container
    (`nn.Sequential`, `nn.ModuleList`) stands for its children, anything else for itself: a block. Each block offers
    a site beside it, where one stride leads from its input's size to its output's, and one after it.

    Args:
        host: the network.
        target_layers: names or patterns.
        seeds_per_layer: most sites for one target.
        input_shape: (C, H, W) of the network's input.

    Raises:
        ConfigError: a target matches nothing, or a block does not map one image-like tensor to another.
    """
    shapes = _block_shapes(host, find_blocks(host, target_layers), input_shape)
    counts: dict[str, int] = {}
    sites = []
    for block, (layer, in_shape, out_shape) in shapes.items():
        for kind in _kinds(in_shape, out_shape):
            if counts.get(layer, 0) == seeds_per_layer:
                break
            counts[layer] = counts.get(layer, 0) + 1
            kernel_in = out_shape if kind == "after" else in_shape
            sites.append(
                Site(
                    name=f"{block}:{kind}",
                    layer=layer,
                    block=block,
                    kind=kind,
                    in_shape=kernel_in,
                    out_shape=out_shape,
                )
            )
    return sites


def _kinds(in_shape: Shape, out_shape: Shape) -> tuple[SiteKind, ...]:
    return ("after",) if stride_between(in_shape, out_shape) is None else ("beside", "after")


def find_blocks(host: nn.Module, target_layers: Sequence[str]) -> dict[str, str]:
    """Map the name of each block of the target layers to the target that selected it first; see `find_sites`."""
    modules = dict(host.named_modules())
    blocks: dict[str, str] = {}
    for target in target_layers:
        matches = [name for name in modules if name and _matches(name, target)]
        if not matches:
            top = [name for name in modules if name and "." not in name]
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


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _block_shapes(host: nn.Module, blocks: dict[str, str], input_shape: Shape) -> dict[str, tuple[str, Shape, Shape]]:
    """Measure the blocks' shapes with one forward pass in eval mode; the result is in forward order."""
    shapes: dict[str, tuple[str, Shape, Shape]] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def record(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if name in shapes:
                raise ConfigError(f"model.target_layers: {name!r} runs more than once in a forward pass; leave it out")
            tensors = [*args[:1], output]
            if len(args) != 1 or not all(isinstance(t, Tensor) and t.dim() == 4 for t in tensors):
                raise ConfigError(
                    f"model.target_layers: {name!r} does not map one (N, C, H, W) tensor to another; kernels can only "
                    "grow at blocks that do"
                )
            in_shape, out_shape = (tuple(t.shape[1:]) for t in tensors)
            shapes[name] = (blocks[name], in_shape, out_shape)

        return record

    hooks = [host.get_submodule(name).register_forward_hook(recorder(name)) for name in blocks]
    was_training = host.training
    reference = next(host.parameters())
    try:
        host.eval()
        with torch.no_grad():
            host(torch.zeros(1, *input_shape, device=reference.device, dtype=reference.dtype))
    finally:
        host.train(was_training)
        for hook in hooks:
            hook.remove()
    return shapes
