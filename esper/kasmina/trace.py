"""What one forward pass shows of a network: shapes, and which layer reads another's output."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from esper.urza.kernel import Shape, stride_between

__all__ = ["Call", "Trace", "trace"]

_TOKENS = " (but tokens, as (N, L, C))"
_CHANNELS_LAST = " (but has its channels last)"


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One run of a convolution, norm or ReLU.

    Attributes:
        name: the layer's.
        module: the layer.
        x, y: its input and output, both (1, C, H, W).
        x_version, y_version: how often these had been written into: `out += identity` makes another tensor of `out`.
    """

    name: str
    module: nn.Module
    x: Tensor
    y: Tensor
    x_version: int
    y_version: int

    @property
    def in_shape(self) -> Shape:
        """(C, H, W) of the input."""
        return _shape(self.x)

    @property
    def out_shape(self) -> Shape:
        """(C, H, W) of the output."""
        return _shape(self.y)

    def within(self, block: str) -> bool:
        """Whether the layer is part of a block."""
        return self.name.startswith(f"{block}.")


@dataclass(slots=True)
class Trace:
    """What was seen, in forward order.

    Attributes:
        blocks: shapes (C, H, W) of the input and output of each block at which something can grow.
        refused: why nothing can grow at one of the others.
        rectified: the blocks that put out nothing negative.
        convs: shape (C, H, W) of the input of each convolution that ran.
        calls: the runs of convolutions, batch norms and ReLUs; empty unless they were asked for.
    """

    blocks: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    rectified: set[str] = field(default_factory=set)
    convs: dict[str, Shape] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def convolutions(self, block: str) -> list[Call]:
        """The convolutions of a block to which a branch of up to 3×3 can be folded, whatever stands around them."""
        return [call for call in self.calls if call.within(block) and _is_foldable(call)]

    def norm_after(self, conv: Call) -> Call | None:
        """The batch norm that reads a convolution's output, if that alone does and has statistics to fold."""
        found = self._only_reader(conv)
        # A subclass may do more than normalise: timm's have the activation inside.
        if found is None or type(found.module) is not nn.BatchNorm2d:
            return None
        return found if found.module.affine and found.module.track_running_stats else None

    def chained_after(self, conv: Call) -> tuple[Call, Call] | None:
        """The norm and the convolution of stride 1 that follow with a ReLU between them, if nothing else reads there.

        The first convolution has all of the block's stride.
        """
        norm = self.norm_after(conv)
        relu = self._only_reader(norm) if norm else None
        last = self._only_reader(relu) if relu and isinstance(relu.module, nn.ReLU) else None
        if norm is None or last is None or type(last.module) is not nn.Conv2d or last.module.stride != (1, 1):
            return None
        return norm, last

    def _only_reader(self, call: Call) -> Call | None:
        """The layer that reads a layer's output; None if several do, or none."""
        readers = [other for other in self.calls if other.x is call.y and other.x_version == call.y_version]
        return readers[0] if len(readers) == 1 else None


def trace(host: nn.Module, blocks: Iterable[str], *, input_shape: Shape, inside: bool) -> Trace:
    """Run a network once on noise, in eval mode, and note what passes through its blocks.

    Args:
        host: the network; nothing of it changes.
        blocks: names of the blocks.
        input_shape: (C, H, W) of the network's input.
        inside: note the calls of convolutions, norms and ReLUs too.
    """
    seen = Trace()
    is_square = input_shape[1] == input_shape[2]
    hooks = [
        host.get_submodule(name).register_forward_hook(_block_recorder(seen, name, is_square=is_square))
        for name in blocks
    ]
    for name, module in host.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(_conv_recorder(seen, name)))
    if inside:
        for name, module in host.named_modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.ReLU):
                hooks.append(module.register_forward_hook(_call_recorder(seen, name)))
    was_training = host.training
    reference = next(host.parameters())
    try:
        host.eval()
        with torch.no_grad():
            host(torch.randn(1, *input_shape, generator=torch.Generator().manual_seed(0)).to(reference))
    finally:
        host.train(was_training)
        for hook in hooks:
            hook.remove()
    if any(reason.endswith(_CHANNELS_LAST) for reason in seen.refused.values()):
        # Then (N, 96, 96, 96) is no image either.
        for name in [name for name, shapes in seen.blocks.items() if any(len(set(shape)) == 1 for shape in shapes)]:
            seen.blocks.pop(name)
            seen.refused[name] = "cannot be told from a block that has its channels last"
    runs = [call.name for call in seen.calls if not isinstance(call.module, nn.ReLU)]
    seen.calls = [call for call in seen.calls if runs.count(call.name) <= 1]
    return seen


def _block_recorder(seen: Trace, name: str, *, is_square: bool) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def record(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if name in seen.blocks or name in seen.refused:
            seen.blocks.pop(name, None)
            seen.refused[name] = "runs more than once in a forward pass"
        elif (obstacle := _obstacle(args, output, is_square=is_square)) is not None:
            seen.refused[name] = "does not map one (N, C, H, W) tensor to another" + obstacle
        else:
            seen.blocks[name] = (_shape(args[0]), _shape(output))
            if not (output < 0).any():
                seen.rectified.add(name)

    return record


def _obstacle(args: tuple[Any, ...], output: Any, *, is_square: bool) -> str | None:
    """Why what a block reads and puts out are no images, in brackets or empty; None if they are."""
    tensors = [*args[:1], output]
    if len(args) != 1 or not all(isinstance(t, Tensor) for t in tensors):
        return ""
    if all(t.dim() == 3 for t in tensors):
        return _TOKENS
    if not all(t.dim() == 4 for t in tensors):
        return ""
    # Square images give square maps, unless what stands last are channels.
    return _CHANNELS_LAST if is_square and any(t.shape[2] != t.shape[3] for t in tensors) else None


def _conv_recorder(seen: Trace, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def record(_: nn.Module, args: tuple[Any, ...], __: Any) -> None:
        seen.convs[name] = _shape(args[0])

    return record


def _call_recorder(seen: Trace, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x = args[0]
        wrote_into_x = isinstance(module, nn.ReLU) and module.inplace
        seen.calls.append(Call(name, module, x, output, x._version - wrote_into_x, output._version))

    return record


def _is_foldable(call: Call) -> bool:
    """A convolution into which a branch of up to 3×3 can be written: ungrouped, padded by half its odd size."""
    conv = call.module
    if type(conv) is not nn.Conv2d or conv.groups != 1 or conv.dilation != (1, 1) or conv.padding_mode != "zeros":
        return False
    sizes = conv.kernel_size
    stride = stride_between(call.in_shape, call.out_shape)
    return (
        all(size >= 3 and size % 2 == 1 for size in sizes)
        and conv.padding == tuple(size // 2 for size in sizes)
        and stride is not None
        and conv.stride == (stride, stride)
    )


def _shape(x: Tensor) -> Shape:
    channels, height, width = x.shape[1:]
    return channels, height, width
