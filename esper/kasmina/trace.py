"""Trace a forward pass of a network: shapes, and which layer reads another's output."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from esper.costs import Cost, counting_macs
from esper.errors import ConfigError, one_line
from esper.kasmina.hidden_layers import HiddenLayer, HiddenLayers
from esper.kasmina.modes import evaluating
from esper.urza.kernel import Shape, main_tensor, stride_between

__all__ = ["Block", "Call", "Trace", "example", "trace"]

_NO_TENSOR = "does not map one tensor to another"
_CHANNELS_LAST = " (but channels last, as (N, H, W, C))"


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a convolution, norm or ReLU.

    Attributes:
        name: of the layer.
        module: the layer.
        x, y: its input and output, both (N, C, H, W).
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
        return tuple(self.x.shape[1:])

    @property
    def out_shape(self) -> Shape:
        """(C, H, W) of the output."""
        return tuple(self.y.shape[1:])

    def within(self, block: str) -> bool:
        """Whether the layer is inside a block."""
        return self.name.startswith(f"{block}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block at which something can grow.

    Attributes:
        in_shape, out_shape: of its input and output.
        cost: its parameters, and MACs of one example.
        is_rectified: whether its output had no negative values.
        is_causal: whether no output position, in (T, D), depended on the last input position; False for other shapes.
    """

    in_shape: Shape
    out_shape: Shape
    cost: Cost
    is_rectified: bool
    is_causal: bool = False


@dataclass(slots=True)
class Trace:
    """Blocks, layers and calls of a network, in forward order.

    Attributes:
        blocks: the blocks at which something can grow.
        rejected: the other blocks, each with the reason.
        convs, linears: shape of the input of each convolution and each linear layer that ran.
        calls: the calls of convolutions, batch norms and ReLUs; empty unless `record_calls`.
        hidden: pairs of linear layers; empty unless `record_calls`.
    """

    blocks: dict[str, Block] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    convs: dict[str, Shape] = field(default_factory=dict)
    linears: dict[str, Shape] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    hidden: list[HiddenLayer] = field(default_factory=list)

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


def trace(
    host: nn.Module,
    blocks: Iterable[str],
    *,
    input_shape: Shape,
    input_dtype: torch.dtype | None = None,
    record_calls: bool,
) -> Trace:
    """Run a network on noise, in eval mode, and record what passes through its blocks.

    Args:
        host: the network; it does not change.
        blocks: names of the blocks.
        input_shape: of an example.
        input_dtype: of the input; None: that of the parameters. Whole numbers are ids of tokens.
        record_calls: also record the calls of convolutions, norms and ReLUs, and pairs of linear layers.

    Raises:
        ConfigError: the network cannot take such an input.
    """
    x = example(host, input_shape, input_dtype)
    traced, outputs = Trace(), dict[str, Tensor]()
    is_square = len(input_shape) == 3 and input_shape[1] == input_shape[2]
    with counting_macs() as macs, evaluating(host), ExitStack() as hooks:
        for name in blocks:
            recorder = _BlockRecorder(traced, name, outputs, macs=macs, num_examples=len(x), is_square=is_square)
            module = host.get_submodule(name)
            hooks.enter_context(module.register_forward_pre_hook(recorder.before))
            hooks.enter_context(module.register_forward_hook(recorder.after, with_kwargs=True))
        hidden = HiddenLayers(num_examples=len(x))
        for name, module in host.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                shapes = traced.convs if isinstance(module, nn.Conv2d) else traced.linears
                hooks.enter_context(module.register_forward_hook(_shape_recorder(shapes, name)))
            if record_calls and isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.ReLU):
                hooks.enter_context(module.register_forward_hook(_call_recorder(traced, name)))
            if record_calls and type(module) is nn.Linear and _owns_weight(module):
                hooks.enter_context(module.register_forward_hook(hidden.recorder(name)))
        _run(host, x, input_shape)
    _reject_ambiguous(traced)
    runs = [call.name for call in traced.calls if not isinstance(call.module, nn.ReLU)]
    traced.calls = [call for call in traced.calls if runs.count(call.name) <= 1]
    traced.hidden = hidden.found()
    _mark_causal(host, traced, {name: y for name, y in outputs.items() if name in traced.blocks}, x, input_shape)
    return traced


def example(host: nn.Module, shape: Shape, dtype: torch.dtype | None) -> Tensor:
    """A batch of noise, or of ids 0 and 1. Its size differs from all of `shape`: it marks the batch dimension later.

    Noise of rows lies between 1 and 2: a network may take it for ids, of as few as two categories, or of tokens, among
    which 0 is often padding.
    """
    reference = next(itertools.chain(host.parameters(), host.buffers()), torch.zeros(()))
    dtype = dtype or reference.dtype
    num_examples = next(n for n in (2, 3, 5, 7, 11, 13, 17) if n not in shape)
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        noise = torch.empty(num_examples, *shape)
        noise = noise.uniform_(1, 1.9, generator=generator) if len(shape) == 1 else noise.normal_(generator=generator)
        return noise.to(reference.device, dtype)
    return torch.randint(0, 2, (num_examples, *shape), generator=generator).to(reference.device, dtype)


def _run(host: nn.Module, x: Tensor, shape: Shape) -> None:
    try:
        host(x)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the network is the user's, and may raise anything
        raise ConfigError(
            f"model: the network fails on an input of shape {shape} and {str(x.dtype).removeprefix('torch.')} "
            f"({one_line(error, max_length=200)}); give the shape of one example of its input"
        ) from None


class _BlockRecorder:
    """Hooks of a block that record what passes through it."""

    def __init__(
        self,
        traced: Trace,
        name: str,
        outputs: dict[str, Tensor],
        *,
        macs: Callable[[], int],
        num_examples: int,
        is_square: bool,
    ) -> None:
        self._traced = traced
        self._name = name
        self._outputs = outputs
        self._macs = macs
        self._num_examples = num_examples
        self._is_square = is_square
        self._macs_before = 0

    def before(self, _: nn.Module, __: tuple[Any, ...]) -> None:
        """Hook before the block runs."""
        self._macs_before = self._macs()

    def after(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Hook after it has run."""
        traced, name = self._traced, self._name
        if name in traced.blocks or name in traced.rejected:
            traced.blocks.pop(name, None)
            traced.rejected[name] = "runs more than once in a forward pass"
            return
        reason = _misfit(args, output, num_examples=self._num_examples, is_square=self._is_square)
        reason = reason or _shared_cache([*args, *kwargs.values()])
        if reason is not None:
            traced.rejected[name] = reason
            return
        x, y = args[0], main_tensor(output)
        num_macs = (self._macs() - self._macs_before) // self._num_examples
        found = Block(
            in_shape=tuple(x.shape[1:]),
            out_shape=tuple(y.shape[1:]),
            cost=Cost(num_parameters=sum(p.numel() for p in block.parameters()), num_macs=num_macs),
            is_rectified=not bool((y < 0).any()),
        )
        if _puts_channels_first(block, found):
            traced.rejected[name] = f"{_NO_TENSOR} (but sequences with channels first, as (N, C, L))"
            return
        traced.blocks[name] = found
        if y.dim() == 3:
            self._outputs[name] = y.clone()


def _misfit(args: tuple[Any, ...], output: Any, *, num_examples: int, is_square: bool) -> str | None:
    """Why nothing can grow at a block; None: something can."""
    if type(output) is tuple and output:
        output = output[0]
    if not args:
        return f"{_NO_TENSOR} (all its arguments have keywords; the tensor must be the first, without)"
    tensors = [args[0], output]
    if not all(isinstance(t, Tensor) and t.is_floating_point() for t in tensors):
        return _NO_TENSOR
    if any(t.dim() < 2 for t in tensors) or any(len(t) != num_examples for t in tensors):
        return f"{_NO_TENSOR} with the examples in its first dimension (batch_first=True)"
    # Square images give square feature maps, unless the last dimension holds the channels.
    if is_square and any(t.dim() == 4 and t.shape[2] != t.shape[3] for t in tensors):
        return _NO_TENSOR + _CHANNELS_LAST
    return None


def _shared_cache(arguments: Iterable[Any]) -> str | None:
    """Why a block of transformers cannot grow: its copies would read the keys and values that it has stored."""
    for value in arguments:
        if hasattr(value, "get_seq_length") and hasattr(value, "update"):
            return f"is given a {type(value).__name__} of keys and values; make the network with use_cache=False"
    return None


def _puts_channels_first(block: nn.Module, found: Block) -> bool:
    """Whether a convolution over sequences reads or writes tensors like the block's input or output."""
    convs = [module for module in block.modules() if isinstance(module, nn.Conv1d | nn.ConvTranspose1d)]
    return len(found.out_shape) == 2 and any(
        conv.in_channels in found.in_shape[:1] or conv.out_channels in found.out_shape[:1] for conv in convs
    )


def _reject_ambiguous(traced: Trace) -> None:
    """Where one block has its channels last, reject those whose shape does not say."""
    if any(reason.endswith(_CHANNELS_LAST) for reason in traced.rejected.values()):
        # In such a network, (N, 96, 96, 96) may be channels last too.
        for name in [
            name
            for name, block in traced.blocks.items()
            if any(len(shape) == 3 and len(set(shape)) == 1 for shape in (block.in_shape, block.out_shape))
        ]:
            traced.blocks.pop(name)
            traced.rejected[name] = "may have its channels last: C, H and W are equal"


def _mark_causal(host: nn.Module, traced: Trace, outputs: dict[str, Tensor], x: Tensor, input_shape: Shape) -> None:
    """Change the last position of the input, and find the blocks whose earlier outputs stay the same."""
    if not outputs:
        return
    changed = x.clone()
    last = changed[..., -1, -1] if x.dim() == 4 else changed[:, -1]
    last.copy_(last * 10 + 1 if x.is_floating_point() else 1 - last)

    def compare(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            before, after = outputs[name][:, :-1], main_tensor(output)[:, :-1]
            # Rounding differs by less; a false "causal" costs an attention branch its view ahead, no more.
            if before.numel() and bool((before - after).abs().max() <= 1e-5 * before.abs().max()):
                traced.blocks[name] = dataclasses.replace(traced.blocks[name], is_causal=True)

        return hook

    with torch.no_grad(), evaluating(host), ExitStack() as hooks:
        for name in outputs:
            hooks.enter_context(host.get_submodule(name).register_forward_hook(compare(name)))
        _run(host, changed, input_shape)


def _shape_recorder(shapes: dict[str, Shape], name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def record(_: nn.Module, args: tuple[Any, ...], __: Any) -> None:
        shapes[name] = tuple(args[0].shape[1:])

    return record


def _call_recorder(traced: Trace, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x = args[0]
        wrote_into_x = isinstance(module, nn.ReLU) and module.inplace
        traced.calls.append(Call(name, module, x, output, x._version - wrote_into_x, output._version))

    return record


def _owns_weight(layer: nn.Module) -> bool:
    """Whether a layer's weight is a parameter, and not computed by a hook, as those of `nn.utils.spectral_norm` do."""
    return "weight" in dict(layer.named_parameters(recurse=False))


def _is_foldable(call: Call) -> bool:
    """Whether a branch of up to 3×3 can be folded into a convolution: ungrouped, odd size, padded by half of it."""
    conv = call.module
    if type(conv) is not nn.Conv2d or not _owns_weight(conv):
        return False
    if conv.groups != 1 or conv.dilation != (1, 1) or conv.padding_mode != "zeros":
        return False
    sizes = conv.kernel_size
    stride = stride_between(call.in_shape, call.out_shape)
    return (
        all(size >= 3 and size % 2 == 1 for size in sizes)
        and conv.padding == tuple(size // 2 for size in sizes)
        and stride is not None
        and conv.stride == (stride, stride)
    )
