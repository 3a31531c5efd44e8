"""Copy trained blocks: which blocks of a stage to copy behind which, and how a copy is made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from esper.costs import Cost, count
from esper.errors import SurgeryError
from esper.kasmina.modes import can_train
from esper.kasmina.sites import Site
from esper.models import checkpoint_blocks, is_checkpointed
from esper.urza import Shape
from esper.urza.copied import CopiedBlocks

if TYPE_CHECKING:
    from esper.contracts.recipe import Graft
    from esper.kasmina.model import MorphableModel
    from esper.kasmina.slot import SeedSlot

__all__ = [
    "adjust_copies",
    "copies_cost",
    "copy_blocks",
    "copy_sources",
    "costs_of_doubling",
    "kernel_cost",
    "scale_to_depth",
    "share_gains",
    "source_block",
    "stage_plan",
    "stages",
]


def stage_plan(
    chains: Mapping[str, Sequence[str]], copyable: Collection[str], order: str
) -> dict[str, tuple[str, ...]]:
    """How to double the depth of a stage: for each block that gets copies behind it, what to copy, in order.

    A block that changes its input's shape, as the first of a stage often does, cannot be copied; another is copied
    once more. The last copy is of the stage's last block, whose output the next stage was trained to read.

    Args:
        chains: by block of the stage, in forward order: its name and those of the copies behind it.
        copyable: the blocks whose input and output have one shape.
        order: `stack` (the whole chain behind its last block: 1 2 3 1 2 3) or `interleave` (each block behind itself:
            1 1 2 2 3 3).
    """
    candidates = [name for block, chain in chains.items() if block in copyable for name in chain]
    depth = sum(len(chain) for chain in chains.values())
    if not candidates:
        return {}
    if order == "stack":
        return {list(chains)[-1]: _last_of_cycle(candidates, depth)}
    plan = {block: tuple(chain) for block, chain in chains.items() if block in copyable}
    last = list(plan)[-1]
    plan[last] = _last_of_cycle(plan[last], len(plan[last]) + depth - len(candidates))
    return plan


def _last_of_cycle(chain: Sequence[str], num: int) -> tuple[str, ...]:
    """The last `num` items of the chain repeated for ever."""
    return tuple(reversed([chain[-1 - i % len(chain)] for i in range(num)]))


def stages(model: MorphableModel) -> list[list[Site]]:
    """The `after` sites of each stage, in forward order: blocks of one container whose outputs have one shape."""
    grouped: dict[tuple[str, Shape], list[Site]] = {}
    for site in (slot.site for slot in model.all_slots()):
        if site.kind == "after":
            grouped.setdefault((site.block.rpartition(".")[0], site.out_shape), []).append(site)
    return list(grouped.values())


def copy_sources(model: MorphableModel, slot: SeedSlot, order: str) -> tuple[str, ...]:
    """What to copy behind a slot's block when its stage doubles: `layer1.0`, or `layer1.0+2` for its second copy.

    Args:
        model: the network.
        slot: an `after` slot.
        order: see `stage_plan`.

    Raises:
        SurgeryError: nothing is copied to this site.
    """
    stage = next((sites for sites in stages(model) if slot.site in sites), [])
    chains = {
        site.block: [
            site.block,
            *(f"{site.block}+{i}" for i in range(1, 1 + len(_copies_behind(model, site.block)))),
        ]
        for site in stage
    }
    plan = stage_plan(chains, [site.block for site in stage if site.keeps_shape], order)
    if slot.site.block not in plan:
        raise SurgeryError(f"copy_order={order} copies nothing behind {slot.site.block!r}")
    return plan[slot.site.block]


def copies_cost(model: MorphableModel, slot: SeedSlot, order: str) -> Cost:
    """What the copies behind a slot's block would add.

    Raises:
        SurgeryError: nothing is copied to this site.
    """
    return _cost_of([_block(model, source)[1] for source in copy_sources(model, slot, order)], model)


def kernel_cost(model: MorphableModel, graft: Graft) -> Cost:
    """Parameters and MACs of a kernel in the network."""
    slot = model.slot(graft.site)
    kernel = slot.kernel(graft)
    if isinstance(kernel, CopiedBlocks):
        return _cost_of(kernel.origins, model)
    return count(kernel, slot.site.in_shape)


def _cost_of(blocks: Iterable[str], model: MorphableModel) -> Cost:
    """Cost of blocks of the host."""
    sites = [*model.all_sites.values(), *(slot.site for slot in model.all_slots())]
    costs = {site.block: site.block_cost for site in sites if site.kind == "after"}
    return sum((costs[block] for block in blocks), Cost(num_parameters=0, num_macs=0))


def costs_of_doubling(model: MorphableModel, order: str, *, times: int) -> list[Cost]:
    """What a network gains by each doubling of all its stages, and those before it; see `stage_plan`.

    Args:
        model: the network; copies that grew in the run, after its first step, are left out.
        order: see `stage_plan`.
        times: number of doublings.
    """
    costs = [Cost(num_parameters=0, num_macs=0)] * times
    for stage in stages(model):
        # By block of the stage: for it and each copy behind it, the host's block that it is a copy of.
        chains = {site.block: [site.block, *_initial_origins(model, site.block)] for site in stage}
        cost_of = {site.block: site.block_cost for site in stage if site.keeps_shape}
        added = Cost(num_parameters=0, num_macs=0)
        for doubling in range(times):
            for block, origins in stage_plan(chains, cost_of, order).items():
                chains[block] += origins
                added = sum((cost_of[origin] for origin in origins), added)
            costs[doubling] += added
    return costs


def _initial_origins(model: MorphableModel, block: str) -> list[str]:
    """Origins of the copies that stood behind a block before the first step of the run."""
    return [
        origin
        for slot in model.all_slots()
        if slot.site.block == block
        for graft in slot.grafts
        if graft.born_step == 0 and isinstance(kernel := slot.kernel(graft), CopiedBlocks)
        for origin in kernel.origins
    ]


def copy_blocks(model: MorphableModel, sources: Sequence[str], *, init: str, init_seed: int) -> CopiedBlocks:
    """Copy blocks of a network.

    Args:
        model: the network.
        sources: what to copy, in the order in which the copies run; see `copy_sources`.
        init: `trained` or `shared` (weights, buffers and gains of the source; `share_gains` follows), `zeroed` (the
            same, with the last norm 0: the output of the network does not change) or `fresh` (initial weights, as a
            larger host would have).
        init_seed: random seed of `fresh` weights.

    Raises:
        SurgeryError: something else has grown in a source, its last norm is not known, or the host cannot be built
            again for fresh weights.
    """
    found = [_block(model, source) for source in sources]
    copies, origins = [_plain_copy(model, *one) for one in found], [origin for _, origin in found]
    for index, (module, origin) in enumerate(zip(copies, origins, strict=True)):
        if init == "fresh":
            module.load_state_dict(_initial(model.build_host, origin, seed=init_seed + index))
        elif init == "zeroed":
            if (norm := _last_norm(module)) is None:
                raise SurgeryError(f"copy_init=zeroed: {origin!r} has no batch norm with a gain at its end")
            nn.init.zeros_(norm.weight)
            nn.init.zeros_(norm.bias)
    checkpoint_blocks(copied for copied, (block, _) in zip(copies, found, strict=True) if is_checkpointed(block))
    return CopiedBlocks(copies, origins)


def source_block(model: MorphableModel, source: str) -> nn.Module:
    """The block that `copy_sources` names."""
    return _block(model, source)[0]


def _block(model: MorphableModel, source: str) -> tuple[nn.Module, str]:
    """The block that `copy_sources` names, and the host's block that it is or is a copy of."""
    name, _, number = source.partition("+")
    copies = _copies_behind(model, name)
    return copies[int(number) - 1] if number else (model.host.get_submodule(name), name)


def _copies_behind(model: MorphableModel, block: str) -> list[tuple[nn.Module, str]]:
    """The kept copies behind a block of the host, in forward order, each with its origin.

    Raises:
        SurgeryError: something else has grown in the block, which a copy would lack.
    """
    copies: list[tuple[nn.Module, str]] = []
    for slot in (slot for slot in model.all_slots() if slot.site.block == block):
        for graft in slot.grafts:
            kernel = slot.kernel(graft)
            if not isinstance(kernel, CopiedBlocks):
                raise SurgeryError(
                    f"{block!r} cannot be copied: {graft.blueprint_id!r} stands at {slot.site.name!r}; "
                    "copy blocks before anything else grows in them"
                )
            if graft in slot.kept_grafts:  # one that has just been attached belongs to the same doubling
                copies += zip(kernel.blocks, kernel.origins, strict=True)
    return copies


def _plain_copy(model: MorphableModel, block: nn.Module, origin: str) -> nn.Module:
    """A deep copy that trains, without slots' hooks and a compiled forward function, which would run the original.

    It shares the block's own hooks, such as those of `torch.nn.utils.spectral_norm`.
    """
    memo: dict[int, object] = {}
    for hooks in (hooks for module in block.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)):
        own = {number: hook for number, hook in hooks.items() if number not in model.hook_numbers}
        memo[id(hooks)] = type(hooks)(own)
    copied = copy.deepcopy(block, memo)
    for module in copied.modules():
        module.__dict__.pop("forward", None)
    constant = [p for name, p in copied.named_parameters() if f"{origin}.{name}" in model.constants]
    is_constant = len(constant) == len(list(copied.parameters()))  # a copy of a block that is frozen as a whole trains
    for p in copied.parameters():
        p.requires_grad_(can_train(p) and (is_constant or all(p is not other for other in constant)))
    return copied


def _initial(build_host: Callable[[], nn.Module] | None, origin: str, *, seed: int) -> dict[str, torch.Tensor]:
    """Initial weights of a block of the host; the global generator does not change."""
    if build_host is None:
        raise SurgeryError("copies with fresh weights need a host that can be built again")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build_host().get_submodule(origin).state_dict()


def adjust_copies(model: MorphableModel, graft: Graft) -> None:
    """Adjust weights once copies, or another kernel, have been attached: what `copy_init` asks for."""
    if graft.copy_init == "shared":  # alpha is raised to 1 at once
        share_gains(model, graft)
    elif graft.copy_init == "fresh":
        scale_to_depth(model, graft)


def scale_to_depth(model: MorphableModel, graft: Graft | None = None) -> None:
    """Give fresh weights the size that they have in a network built with as many blocks as there are now.

    Blocks of which that depends on the number of blocks say so by a method `scale_residual(factor)`, which multiplies
    what they add to the residual stream: it is proportional to 1/sqrt(blocks), as in GPT-2.

    Args:
        model: the network.
        graft: fresh copies in a trained network; None: the whole network is untrained.
    """
    copies: dict[str, list[nn.Module]] = {}
    for slot in model.all_slots():
        for kernel in map(slot.kernel, slot.grafts):
            if isinstance(kernel, CopiedBlocks):
                copies.setdefault(slot.site.block.rpartition(".")[0], []).extend(kernel.blocks)
    fresh = None if graft is None else set(model.slot(graft.site).kernel(graft).modules())
    for container, copied in copies.items():
        blocks = [*model.host.get_submodule(container).children()]
        for block in [*blocks, *copied]:
            if (fresh is None or block in fresh) and (scale := getattr(block, "scale_residual", None)) is not None:
                scale((len(blocks) / (len(blocks) + len(copied))) ** 0.5)


def share_gains(model: MorphableModel, graft: Graft) -> None:
    """Divide what a block does among it and its copies: with k copies, each gets 1/(k + 1) of the last norm's gain.

    So a chain of residual blocks at first does about what the block did: one step becomes k + 1 smaller ones. Blocks
    without batch norm, and their copies, keep their strength. What the last norms of several blocks share is divided
    once, as soon as all of them have copies born at this step, and by the largest k + 1; copies of a block that has
    fewer get more each. Source: Chang et al. 2018, arXiv:1710.10348.

    Args:
        model: the network.
        graft: the copies, which have just been attached.
    """
    copies: dict[nn.Module, list[nn.Module]] = {}
    for born in (entry for entry in model.recipe if entry.sources and entry.born_step == graft.born_step):
        kernel = model.slot(born.site).kernel(born)
        assert isinstance(kernel, CopiedBlocks)
        for source, copied in zip(born.sources, kernel.blocks, strict=True):
            copies.setdefault(source_block(model, source), []).append(copied)
    new = {source_block(model, source) for source in graft.sources}
    with torch.no_grad():
        for p, owners in _owners_of_gains(model, copies).items():
            if new.isdisjoint(owners) or not owners.keys() <= copies.keys():
                continue
            most = max(len(copies[block]) for block in owners)
            p.div_(1 + most)
            for block, name in owners.items():
                for copied in copies[block]:
                    share = _last_gain(copied)[name].div_(1 + most)
                    if len(copies[block]) < most:
                        share.mul_(most / len(copies[block]))


def _owners_of_gains(model: MorphableModel, others: Iterable[nn.Module]) -> dict[nn.Parameter, dict[nn.Module, str]]:
    """By parameter of last norms: its name in that of each block, of the host's blocks and others."""
    sites = [*model.all_sites.values(), *(slot.site for slot in model.all_slots())]
    blocks = [model.host.get_submodule(site.block) for site in sites if site.kind == "after"]
    owners: dict[nn.Parameter, dict[nn.Module, str]] = {}
    for block in [*blocks, *others]:
        for name, p in _last_gain(block).items():
            owners.setdefault(p, {})[block] = name
    return owners


def _last_gain(block: nn.Module) -> dict[str, nn.Parameter]:
    """Weight and bias of a block's last norm; none if it has no such norm."""
    norm = _last_norm(block)
    return {} if norm is None else {"weight": norm.weight, "bias": norm.bias}


def _last_norm(block: nn.Module) -> nn.BatchNorm2d | None:
    norm = next((m for m in reversed(list(block.children())) if isinstance(m, nn.BatchNorm2d)), None)
    return norm if norm is not None and norm.affine else None
