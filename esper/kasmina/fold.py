"""Plain copies of a grown network: as it stands, or with what grew folded into the host's own layers."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from esper.errors import SurgeryError
from esper.kasmina.model import MorphableModel
from esper.kasmina.slot import SeedSlot
from esper.urza.foldable import ParallelBranch, centred
from esper.urza.residual import ResidualBlock
from esper.urza.width import InnerChannels

__all__ = ["fold", "unwrap"]


def unwrap(model: MorphableModel) -> nn.Module:
    """Copy the network out as a plain module without hooks; what grew stands inside its blocks.

    An ungrown network comes out as the host it was, with the host's parameter names.
    """
    host, slots = _copied(model)
    _place(host, slots)
    return host


def fold(model: MorphableModel) -> nn.Module:
    """Copy the network out in eval mode, foldable kernels written into the host's own layers, the rest as in `unwrap`.

    A `parallel` kernel becomes part of its convolution and norm, new channels stand beside those of their block, and a
    `residual_block` becomes one more `BasicBlock` of its `nn.Sequential`, whose later blocks move back by one. The
    result computes what the network computes in eval mode, to rounding; in training mode it does not.

    Raises:
        SurgeryError: a kernel is live: what it will be is not known yet.
    """
    for slot in model.all_slots():
        if slot.is_live:
            raise SurgeryError(
                f"site {slot.site.name!r} is {slot.state}: a network can be folded once no kernel is live; let the "
                "judge decide, or cull it"
            )
    host, slots = _copied(model)
    with torch.no_grad():
        # Width first: a convolution's own norm acts on the new channels too, and is rewritten by what is parallel.
        for slot in sorted(slots, key=lambda slot: slot.site.kind != "width"):
            if slot.site.kind in ("width", "parallel"):
                _fold_inside(host, slot)
        deep = [slot for slot in slots if _deepens(host, slot)]
        _place(host, [slot for slot in slots if slot not in deep])
        for slot in reversed(deep):  # from behind, so that the names of blocks before stay
            _deepen(host, slot)
    return host.eval().to(memory_format=model.memory_format)


def _copied(model: MorphableModel) -> tuple[nn.Module, list[SeedSlot]]:
    """The host without hooks, and the slots in which something stands."""
    host, slots = copy.deepcopy((model.host, model.slots))
    for name, (start, end) in model._hooks.items():
        site = model.slot(name).site
        host.get_submodule(site.start)._forward_pre_hooks.pop(start.id)
        host.get_submodule(site.end)._forward_hooks.pop(end.id)
    return host, [slot for slot in slots.values() if isinstance(slot, SeedSlot) and slot.grafts]


# --- folding ----------------------------------------------------------------------------------------------------------


def _fold_inside(host: nn.Module, slot: SeedSlot) -> None:
    site = slot.site
    start, end = host.get_submodule(site.start), host.get_submodule(site.end)
    assert isinstance(start, nn.Conv2d)
    for graft in slot.kept_grafts:
        kernel = slot.detach(graft)
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
    """Let norm(conv(x)) become norm(conv(x)) + kernel(x), without dividing by the norm's gain, which may be 0."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    height, width = conv.kernel_size
    added_weight, added_bias = kernel.fused(height, width)
    deviation = torch.sqrt(var.double() + norm.eps)
    factor = norm.weight.double() / deviation
    weight = conv.weight.double() * factor[:, None, None, None]
    bias = norm.bias.double() - mean.double() * factor
    num_out, num_in = added_weight.shape[:2]  # the convolution may have got new channels behind these
    weight[:num_out, :num_in] += added_weight
    bias[:num_out] += added_bias
    if conv.bias is not None:
        conv.bias.copy_(conv.bias.double() * factor)
    conv.weight.copy_(weight)
    norm.weight.copy_(deviation)
    norm.bias.copy_(bias)
    mean.zero_()


def _fold_width(first: nn.Conv2d, norm: nn.BatchNorm2d, last: nn.Conv2d, kernel: InnerChannels) -> None:
    """Put the kernel's inner channels behind those of the block."""
    new, gain = kernel.norm, kernel.scale[:, None, None, None]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert new.running_mean is not None
    assert new.running_var is not None
    inputs, outputs = centred(kernel.conv1.weight, *first.kernel_size), centred(kernel.conv2.weight, *last.kernel_size)
    first.weight = nn.Parameter(torch.cat([first.weight, inputs]))
    if first.bias is not None:
        first.bias = nn.Parameter(torch.cat([first.bias, first.bias.new_zeros(len(inputs))]))
    norm.weight = nn.Parameter(torch.cat([norm.weight, new.weight]))
    norm.bias = nn.Parameter(torch.cat([norm.bias, new.bias]))
    norm.running_mean = torch.cat([norm.running_mean, new.running_mean])
    norm.running_var = torch.cat([norm.running_var, new.running_var + (new.eps - norm.eps)])
    last.weight = nn.Parameter(torch.cat([last.weight, outputs * gain], dim=1))
    first.out_channels = norm.num_features = last.in_channels = len(first.weight)


def _deepens(host: nn.Module, slot: SeedSlot) -> bool:
    """Whether one of the slot's kernels can stand as a block of its own behind the slot's block."""
    stage, _, index = slot.site.block.rpartition(".")
    blocks = any(isinstance(slot.kernel(graft), ResidualBlock) for graft in slot.grafts)
    return blocks and index.isdigit() and isinstance(host.get_submodule(stage), nn.Sequential)


def _deepen(host: nn.Module, slot: SeedSlot) -> None:
    """Put the slot's kernels behind its block in the order in which they act; what is no block stays a kernel."""
    name, _, index = slot.site.block.rpartition(".")
    stage, position = host.get_submodule(name), int(index)
    assert isinstance(stage, nn.Sequential)
    for graft in slot.kept_grafts:
        kernel = slot.detach(graft)
        if isinstance(kernel, ResidualBlock):
            channels = slot.site.out_shape[0]
            block = BasicBlock(channels, channels).to(slot.alpha.device)
            block.load_state_dict(kernel.state_dict())
            position += 1
            stage.insert(position, block)
        else:
            alone = SeedSlot(slot.site, max_kernels=1).to(slot.alpha.device)
            alone.attach(graft, kernel)
            stage[position] = _GrownBlock(stage[position], alone)


# --- what stays a kernel ----------------------------------------------------------------------------------------------


class _GrownBlock(nn.Module):
    """A block of a plain network with a slot that grew at it."""

    def __init__(self, block: nn.Module, slot: SeedSlot) -> None:
        super().__init__()
        self.block = block
        self.slot = slot

    def forward(self, x: Tensor) -> Tensor:
        y = self.slot(x, self.block(x))
        assert isinstance(y, Tensor)
        return y


class _Start(nn.Module):
    """A layer whose input a slot further on reads too."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs[:] = [x]
        y = self.layer(x)
        assert isinstance(y, Tensor)
        return y


class _End(nn.Module):
    """A layer to whose output a slot adds."""

    def __init__(self, layer: nn.Module, start: _Start, slot: SeedSlot) -> None:
        super().__init__()
        self.layer = layer
        self.slot = slot
        self.start = (start,)  # a tuple hides it: it is a part of the network elsewhere

    def forward(self, x: Tensor) -> Tensor:
        y = self.slot(self.start[0].inputs.pop(), self.layer(x))
        assert isinstance(y, Tensor)
        return y


def _place(host: nn.Module, slots: Iterable[SeedSlot]) -> None:
    """Put slots into the network instead of hooks; they are in forward order, `beside` before `after`."""
    grown = [slot for slot in slots if slot.grafts]
    # From inside outwards: a block that is wrapped has other names inside.
    for slot in sorted(grown, key=lambda slot: slot.site.start == slot.site.end):
        site = slot.site
        if site.start == site.end:
            host.set_submodule(site.end, _GrownBlock(host.get_submodule(site.end), slot))
        else:
            start = _Start(host.get_submodule(site.start))
            host.set_submodule(site.start, start)
            host.set_submodule(site.end, _End(host.get_submodule(site.end), start, slot))
