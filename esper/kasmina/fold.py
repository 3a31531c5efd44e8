"""Export a grown network as a plain module: `unwrap` keeps the kernels, `fold` writes them into the host's layers."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.errors import SurgeryError
from esper.kasmina.model import MorphableModel
from esper.kasmina.modes import evaluating
from esper.kasmina.slot import SeedSlot
from esper.kasmina.trace import example
from esper.models.residual import BasicBlock
from esper.urza.copied import CopiedBlocks
from esper.urza.foldable import ParallelBranch, zero_pad
from esper.urza.kernel import main_tensor
from esper.urza.residual import ResidualBlock
from esper.urza.width import HiddenUnits, InnerChannels

__all__ = ["fold", "unwrap"]


def unwrap(model: MorphableModel) -> nn.Module:
    """Copy the network into a plain module without hooks; kernels become submodules of the blocks where they grew.

    Without kernels, the copy is the host, with the host's parameter names.
    """
    host, slots = _copy(model)
    _insert_slots(host, slots)
    return host


def fold(model: MorphableModel, *, names: Collection[str] | None = None) -> nn.Module:
    """Copy the network in eval mode, with foldable kernels written into the host's layers, the others as in `unwrap`.

    A `parallel` kernel is folded into its convolution and norm, `width` channels or units are concatenated to those of
    their block, and a `residual_block` (as a `BasicBlock`) and copies are inserted into the `nn.Sequential` or
    `nn.ModuleList` of their block, where the numbers of later blocks increase, if the host runs whatever that holds.
    The copy computes the same in eval mode, up to rounding; in training mode it does not.

    Args:
        model: the grown network.
        names: of the tensors of a network that was folded before, to be folded alike; None: what the host runs is
            found out by running it.

    Raises:
        SurgeryError: a kernel is live, that is, neither kept nor culled yet.
    """
    for slot in model.all_slots():
        if slot.is_live:
            raise SurgeryError(
                f"site {slot.site.name!r} is {slot.state}: a network can be folded once no kernel is live; let the "
                "judge decide, or cull it"
            )
    for containers in ((nn.Sequential, nn.ModuleList), (nn.Sequential,), ()):
        folded, has_new_blocks = _fold(model, containers)
        if not has_new_blocks:
            break
        if _computes_the_same(model, folded) if names is None else folded.state_dict().keys() == set(names):
            break
    return folded.eval().to(memory_format=model.memory_format)


def _fold(model: MorphableModel, containers: Collection[type[nn.Module]]) -> tuple[nn.Module, bool]:
    """The folded network, and whether blocks were inserted into containers, which are of these kinds."""
    host, slots = _copy(model)
    with torch.no_grad():
        # `width` first: folding a `parallel` kernel rewrites the norm that also acts on the new channels.
        for slot in sorted(slots, key=lambda slot: slot.site.kind != "width"):
            if slot.site.kind in ("width", "parallel"):
                _fold_into_layers(host, slot)
        new_blocks = [slot for slot in slots if _becomes_block(host, slot, containers)]
        _insert_slots(host, [slot for slot in slots if slot not in new_blocks])
        for slot in reversed(new_blocks):  # last first: an insertion changes the numbers of later blocks
            _insert_blocks(host, slot)
    return host, bool(new_blocks)


def _computes_the_same(model: MorphableModel, folded: nn.Module) -> bool:
    x = example(model.host, model.input_shape, model.input_dtype)
    with evaluating(model), evaluating(folded), torch.no_grad():
        expected = model(x)
        try:
            output = folded(x)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the host is the user's, and may check how many blocks it has
            return False
    largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return expected.shape == output.shape and torch.allclose(expected, output, rtol=1e-3, atol=1e-4 * largest)


def _copy(model: MorphableModel) -> tuple[nn.Module, list[SeedSlot]]:
    """Copies of the host, without hooks, and of the slots that hold kernels."""
    host, slots = copy.deepcopy((model.host, model.slots))
    for name, (start, end) in model._hooks.items():
        site = model.slot(name).site
        host.get_submodule(site.start)._forward_pre_hooks.pop(start.id)
        host.get_submodule(site.end)._forward_hooks.pop(end.id)
    return host, [slot for slot in slots.values() if isinstance(slot, SeedSlot) and slot.grafts]


# --- folding ----------------------------------------------------------------------------------------------------------


def _fold_into_layers(host: nn.Module, slot: SeedSlot) -> None:
    site = slot.site
    start, end = host.get_submodule(site.start), host.get_submodule(site.end)
    for graft in slot.kept_grafts:
        kernel = slot.detach(graft)
        if isinstance(kernel, HiddenUnits):
            assert isinstance(start, nn.Linear)
            assert isinstance(end, nn.Linear)
            _fold_hidden(start, end, kernel)
            continue
        assert isinstance(start, nn.Conv2d)
        if isinstance(kernel, ParallelBranch):
            assert isinstance(end, nn.BatchNorm2d)
            _fold_parallel(start, end, kernel)
        else:
            assert isinstance(kernel, InnerChannels)
            assert isinstance(end, nn.Conv2d)
            assert site.norm is not None
            norm = host.get_submodule(site.norm)
            assert isinstance(norm, nn.BatchNorm2d)
            _fold_width(start, norm, end, kernel)


def _fold_parallel(conv: nn.Conv2d, norm: nn.BatchNorm2d, kernel: ParallelBranch) -> None:
    """Turn norm(conv(x)) into norm(conv(x)) + kernel(x), without dividing by the norm's gain, which may be 0."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    height, width = conv.kernel_size
    added_weight, added_bias = kernel.fused(height, width)
    deviation = torch.sqrt(var.double() + norm.eps)
    factor = norm.weight.double() / deviation
    weight = conv.weight.double() * factor[:, None, None, None]
    bias = norm.bias.double() - mean.double() * factor
    num_out, num_in = added_weight.shape[:2]  # `width` may have added channels to the convolution
    weight[:num_out, :num_in] += added_weight
    bias[:num_out] += added_bias
    # New parameters, as other layers may share the old ones.
    dtype = conv.weight.dtype
    if conv.bias is not None:
        conv.bias = nn.Parameter((conv.bias.double() * factor).to(dtype))
    conv.weight = nn.Parameter(weight.to(dtype))
    norm.weight = nn.Parameter(deviation.to(norm.weight.dtype))
    norm.bias = nn.Parameter(bias.to(norm.bias.dtype))
    mean.zero_()


def _fold_width(first: nn.Conv2d, norm: nn.BatchNorm2d, last: nn.Conv2d, kernel: InnerChannels) -> None:
    """Concatenate the kernel's inner channels to those of the block."""
    new, gain = kernel.norm, kernel.scale[:, None, None, None]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert new.running_mean is not None
    assert new.running_var is not None
    inputs, outputs = (
        zero_pad(kernel.conv1.weight, *first.kernel_size),
        zero_pad(kernel.conv2.weight, *last.kernel_size),
    )
    first.weight = nn.Parameter(torch.cat([first.weight, inputs]))
    if first.bias is not None:
        first.bias = nn.Parameter(torch.cat([first.bias, first.bias.new_zeros(len(inputs))]))
    norm.weight = nn.Parameter(torch.cat([norm.weight, new.weight]))
    norm.bias = nn.Parameter(torch.cat([norm.bias, new.bias]))
    norm.running_mean = torch.cat([norm.running_mean, new.running_mean])
    norm.running_var = torch.cat([norm.running_var, new.running_var + (new.eps - norm.eps)])
    last.weight = nn.Parameter(torch.cat([last.weight, outputs * gain], dim=1))
    first.out_channels = norm.num_features = last.in_channels = len(first.weight)


def _fold_hidden(first: nn.Linear, last: nn.Linear, kernel: HiddenUnits) -> None:
    """Concatenate the kernel's hidden units to those of the MLP.

    They neither read nor feed units that folding has added to the layer before or behind.
    """
    inputs, outputs = kernel.fc1.weight, kernel.fc2.weight * kernel.scale[:, None]
    inputs = F.pad(inputs, (0, first.in_features - inputs.shape[1]))
    outputs = F.pad(outputs, (0, 0, 0, last.out_features - len(outputs)))
    first.weight = nn.Parameter(torch.cat([first.weight, inputs]))
    if first.bias is not None:
        first.bias = nn.Parameter(torch.cat([first.bias, kernel.fc1.bias]))
    last.weight = nn.Parameter(torch.cat([last.weight, outputs], dim=1))
    first.out_features = last.in_features = len(first.weight)


def _becomes_block(host: nn.Module, slot: SeedSlot, containers: Collection[type[nn.Module]]) -> bool:
    """Whether one of the slot's kernels can become a block of its own after the slot's block."""
    if not any(isinstance(slot.kernel(graft), ResidualBlock | CopiedBlocks) for graft in slot.grafts):
        return False
    stage = host.get_submodule(slot.site.block.rpartition(".")[0])
    # The forward function of a subclass may know how many blocks there are, as the host of an nn.ModuleList may.
    kind = nn.Sequential if type(stage) is nn.Sequential else nn.ModuleList
    return isinstance(stage, nn.Sequential | nn.ModuleList) and kind in containers and _numbering(stage) is not None


def _numbering(stage: nn.Module) -> tuple[str, int] | None:
    """Prefix and first number of the names of a container's modules: 0, 1, … or layer_1, layer_2, …; None: other."""
    names = [name for name, _ in stage.named_children()]
    match = re.fullmatch(r"(.*?)(\d+)", names[0])
    if match is None:
        return None
    prefix, first = match[1], int(match[2])
    return (prefix, first) if names == [f"{prefix}{first + i}" for i in range(len(names))] else None


def _insert_blocks(host: nn.Module, slot: SeedSlot) -> None:
    """Insert the slot's kernels after its block in the order in which they act; those that are no blocks as kernels."""
    name, _, own_name = slot.site.block.rpartition(".")
    stage = host.get_submodule(name)
    numbering = _numbering(stage)
    assert numbering is not None
    blocks = dict(stage.named_children())
    chain = [blocks[own_name]]
    for graft in slot.kept_grafts:
        kernel = slot.detach(graft)
        if isinstance(kernel, CopiedBlocks):
            chain += kernel.blocks
        elif isinstance(kernel, ResidualBlock):
            channels = slot.site.out_shape[0]
            block = BasicBlock(channels, channels).to(slot.alpha.device)
            block.load_state_dict(kernel.state_dict())
            chain.append(block)
        else:
            own_slot = SeedSlot(slot.site, max_kernels=1).to(slot.alpha.device)
            own_slot.attach(graft, kernel)
            chain[-1] = _GrownBlock(chain[-1], own_slot)
    modules = [m for other, block in blocks.items() for m in (chain if other == own_name else [block])]
    for other in blocks:
        delattr(stage, other)
    prefix, first = numbering
    for index, module in enumerate(modules, start=first):
        stage.add_module(f"{prefix}{index}", module)


# --- slots as submodules ----------------------------------------------------------------------------------------------


class _Around(nn.Module):
    """A module that stands for another: hosts may read attributes of their blocks, such as the weight of a layer."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # a protocol of Python's, of which the inner module would answer for itself
                raise
            inner = self._modules.get("block", self._modules.get("layer"))
            return getattr(inner, name)


class _GrownBlock(_Around):
    """A block and the slot whose kernels read its input or output and add to its output."""

    def __init__(self, block: nn.Module, slot: SeedSlot) -> None:
        super().__init__()
        self.block = block
        self.slot = slot

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = self.block(x, *args, **kwargs)
        y = self.slot(x, main_tensor(output), *args, **kwargs)
        return (y, *output[1:]) if isinstance(output, tuple) else y


class _Start(_Around):
    """A layer whose input a later slot also reads."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs[:] = [x]
        y = self.layer(x)
        assert isinstance(y, Tensor)
        return y


class _End(_Around):
    """A layer to whose output a slot adds."""

    def __init__(self, layer: nn.Module, start: _Start, slot: SeedSlot) -> None:
        super().__init__()
        self.layer = layer
        self.slot = slot
        self.start = (start,)  # in a tuple, so that it is not registered as a submodule a second time

    def forward(self, x: Tensor) -> Tensor:
        y = self.slot(self.start[0].inputs.pop(), self.layer(x))
        assert isinstance(y, Tensor)
        return y


def _insert_slots(host: nn.Module, slots: Iterable[SeedSlot]) -> None:
    """Insert slots into the network in place of hooks; they are in forward order, `beside` before `after`."""
    grown = [slot for slot in slots if slot.grafts]
    # Inner modules first: wrapping a block changes the names of the modules inside.
    for slot in sorted(grown, key=lambda slot: slot.site.start == slot.site.end):
        site = slot.site
        if site.start == site.end:
            host.set_submodule(site.end, _GrownBlock(host.get_submodule(site.end), slot))
        else:
            start = _Start(host.get_submodule(site.start))
            host.set_submodule(site.start, start)
            host.set_submodule(site.end, _End(host.get_submodule(site.end), start, slot))
