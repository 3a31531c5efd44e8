"""Trace one forward pass of a network: shapes, and which layer reads another's output."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.modes import evaluating
from esper.urza.kernel import Shape, stride_between

__all__ = ["Call", "Trace", "trace"]

_TOKENS = " (but tokens, as (N, L, C))"
_CHANNELS_LAST = " (but channels last, as (N, H, W, C))"


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a convolution, norm or ReLU.

    Attributes:
        name: of the layer.
        module: the layer.
        x, y: its input and output, both (1, C, H, W).
        x_version, y_version: autograd's version counters of them: after `out += identity`, `out` is another value.
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
        """Whether the layer is inside a block."""
        return self.name.startswith(f"{block}.")


@dataclass(slots=True)
class Trace:
    """Blocks, convolutions and calls of a network, in forward order.

    Attributes:
        blocks: shapes (C, H, W) of the input and output of each block at which something can grow.
        rejected: the other blocks, each with the reason.
        rectified: the blocks whose output had no negative values.
        convs: shape (C, H, W) of the input of each convolution that ran.
        calls: the calls of convolutions, batch norms and ReLUs; empty unless `record_calls`.
    """

    blocks: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    rectified: set[str] = field(default_factory=set)
    convs: dict[str, Shape] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def foldable_convs(self, block: str) -> list[Call]:
        """The convolutions of a block into which a branch of up to 3×3 can be folded."""
        return [call for call in self.calls if call.within(block) and _is_foldable(call)]

    def norm_after(self, conv: Call) -> Call | None:
        """The batch norm that alone reads a convolution's output, if it can be folded into it."""
        norm = self._only_reader(conv)
        # A subclass may do more than normalise: timm's include the activation.
        if norm is None or type(norm.module) is not nn.BatchNorm2d:
            return None
        return norm if norm.module.affine and norm.module.track_running_stats else None

    def chain_after(self, conv: Call) -> tuple[Call, Call] | None:
        """The norm and the convolution of the chain convolution, norm, ReLU, convolution with stride 1.

        None if there is no such chain, or if another layer reads inside it.
        """
        norm = self.norm_after(conv)
        relu = self._only_reader(norm) if norm else None
        last = self._only_reader(relu) if relu and isinstance(relu.module, nn.ReLU) else None
        if norm is None or last is None or type(last.module) is not nn.Conv2d or last.module.stride != (1, 1):
            return None
        return norm, last

    def _only_reader(self, call: Call) -> Call | None:
        """The layer that reads a layer's output; None unless exactly one does."""
        readers = [other for other in self.calls if other.x is call.y and other.x_version == call.y_version]
        return readers[0] if len(readers) == 1 else None


def trace(host: nn.Module, blocks: Iterable[str], *, input_shape: Shape, record_calls: bool) -> Trace:
    """Run a network once on noise, in eval mode, and record what passes through its blocks.

    Args:
        host: the network; it does not change.
        blocks: names of the blocks.
        input_shape: (C, H, W) of the network's input.
        record_calls: also record the calls of convolutions, norms and ReLUs.
    """
    traced = Trace()
    is_square = input_shape[1] == input_shape[2]
    hooks = [
        host.get_submodule(name).register_forward_hook(_block_recorder(traced, name, is_square=is_square))
        for name in blocks
    ]
    for name, module in host.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(_conv_recorder(traced, name)))
        if record_calls and isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.ReLU):
            hooks.append(module.register_forward_hook(_call_recorder(traced, name)))
    reference = next(host.parameters())
    try:
        with evaluating(host), torch.no_grad():
            host(torch.randn(1, *input_shape, generator=torch.Generator().manual_seed(0)).to(reference))
    finally:
        for hook in hooks:
            hook.remove()
    if any(reason.endswith(_CHANNELS_LAST) for reason in traced.rejected.values()):
        # In such a network, (N, 96, 96, 96) may be channels last too.
        for name in [name for name, shapes in traced.blocks.items() if any(len(set(shape)) == 1 for shape in shapes)]:
            traced.blocks.pop(name)
            traced.rejected[name] = "may have its channels last: C, H and W are equal"
    runs = [call.name for call in traced.calls if not isinstance(call.module, nn.ReLU)]
    traced.calls = [call for call in traced.calls if runs.count(call.name) <= 1]
    return traced


def _block_recorder(traced: Trace, name: str, *, is_square: bool) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def record(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if name in traced.blocks or name in traced.rejected:
            traced.blocks.pop(name, None)
            traced.rejected[name] = "runs more than once in a forward pass"
        elif (reason := _not_images(args, output, is_square=is_square)) is not None:
            traced.rejected[name] = "does not map one (N, C, H, W) tensor to another" + reason
        else:
            traced.blocks[name] = (_shape(args[0]), _shape(output))
            if not (output < 0).any():
                traced.rectified.add(name)

    return record


def _not_images(args: tuple[Any, ...], output: Any, *, is_square: bool) -> str | None:
    """Why a block's input and output are not (N, C, H, W), in brackets or empty; None if they are."""
    tensors = [*args[:1], output]
    if len(args) != 1 or not all(isinstance(t, Tensor) for t in tensors):
        return ""
    if all(t.dim() == 3 for t in tensors):
        return _TOKENS
    if not all(t.dim() == 4 for t in tensors):
        return ""
    # Square images give square feature maps, unless the last dimension holds the channels.
    return _CHANNELS_LAST if is_square and any(t.shape[2] != t.shape[3] for t in tensors) else None


def _conv_recorder(traced: Trace, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def record(_: nn.Module, args: tuple[Any, ...], __: Any) -> None:
        traced.convs[name] = _shape(args[0])

    return record


def _call_recorder(traced: Trace, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x = args[0]
        wrote_into_x = isinstance(module, nn.ReLU) and module.inplace
        traced.calls.append(Call(name, module, x, output, x._version - wrote_into_x, output._version))

    return record


def _is_foldable(call: Call) -> bool:
    """Whether a branch of up to 3×3 can be folded into a convolution: ungrouped, odd size, padded by half of it."""
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
