"""What one forward pass shows of a network: shapes, and which layer reads another's output."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from esper.errors import ConfigError
from esper.urza.kernel import Shape, stride_between

__all__ = ["Call", "Trace", "trace"]


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
        blocks: shapes (C, H, W) of the input and output of each block.
        calls: the runs of convolutions, batch norms and ReLUs; empty unless they were asked for.
    """

    blocks: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def convolutions(self, block: str) -> list[Call]:
        """The convolutions of a block to which a branch of up to 3×3 can be folded, whatever stands around them."""
        return [call for call in self.calls if call.within(block) and _is_foldable(call)]

    def norm_after(self, conv: Call) -> Call | None:
        """The batch norm that reads a convolution's output, if that alone does and has statistics to fold."""
        found = self._only_reader(conv)
        if found is None or not isinstance(found.module, nn.BatchNorm2d):
            return None
        return found if found.module.affine and found.module.track_running_stats else None

    def chained_after(self, conv: Call) -> tuple[Call, Call] | None:
        """The norm and the convolution of stride 1 that follow with a ReLU between them, if nothing else reads there.

        The first convolution has all of the block's stride.
        """
        norm = self.norm_after(conv)
        relu = self._only_reader(norm) if norm else None
        last = self._only_reader(relu) if relu and isinstance(relu.module, nn.ReLU) else None
        if norm is None or last is None or not isinstance(last.module, nn.Conv2d) or last.module.stride != (1, 1):
            return None
        return norm, last

    def _only_reader(self, call: Call) -> Call | None:
        """The layer that reads a layer's output; None if several do, or none."""
        readers = [other for other in self.calls if other.x is call.y and other.x_version == call.y_version]
        return readers[0] if len(readers) == 1 else None


def trace(host: nn.Module, blocks: Iterable[str], *, input_shape: Shape, inside: bool) -> Trace:
    """Run a network once on zeros, in eval mode, and note what passes through its blocks.

    Args:
        host: the network; nothing of it changes.
        blocks: names of the blocks.
        input_shape: (C, H, W) of the network's input.
        inside: note the calls of convolutions, norms and ReLUs too.

    Raises:
        ConfigError: a block does not map one image-like tensor to another, or runs more than once.
    """
    seen = Trace()
    hooks = [host.get_submodule(name).register_forward_hook(_block_recorder(seen, name)) for name in blocks]
    if inside:
        for name, module in host.named_modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.ReLU):
                hooks.append(module.register_forward_hook(_call_recorder(seen, name)))
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
    runs = [call.name for call in seen.calls if not isinstance(call.module, nn.ReLU)]
    seen.calls = [call for call in seen.calls if runs.count(call.name) <= 1]
    return seen


def _block_recorder(seen: Trace, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def record(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if name in seen.blocks:
            raise ConfigError(f"model.target_layers: {name!r} runs more than once in a forward pass; leave it out")
        tensors = [*args[:1], output]
        if len(args) != 1 or not all(isinstance(t, Tensor) and t.dim() == 4 for t in tensors):
            raise ConfigError(
                f"model.target_layers: {name!r} does not map one (N, C, H, W) tensor to another; kernels can only "
                "grow at blocks that do"
            )
        seen.blocks[name] = (_shape(args[0]), _shape(output))

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
    if not isinstance(conv, nn.Conv2d) or conv.groups != 1 or conv.dilation != (1, 1) or conv.padding_mode != "zeros":
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
