"""Surgery: changes of the architecture and of a seed's state, each complete or not made at all.

Germinating and culling return the parameters added and removed, for the optimizer, EMA and captured step. On an error
the model is as it was before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from esper import tezzeret, urza
from esper.contracts.lifecycle import SeedLifecycleState, gate
from esper.contracts.recipe import Graft
from esper.errors import SurgeryError
from esper.kasmina.model import MorphableModel
from esper.kasmina.modes import evaluating
from esper.kasmina.slot import SeedSlot
from esper.urza.kernel import main_tensor
from esper.urza.residual import ResidualBlock

__all__ = ["Change", "abort", "begin_blending", "cull", "fossilize", "germinate", "hold", "set_alpha"]

_S = SeedLifecycleState


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Parameters that surgery added and removed, by state-dict name."""

    graft: Graft
    added: list[tuple[str, nn.Parameter]] = field(default_factory=list)
    removed: list[tuple[str, nn.Parameter]] = field(default_factory=list)
    checks_passed: tuple[str, ...] = ()


def germinate(model: MorphableModel, graft: Graft, *, images: Tensor, epoch: int) -> Change:
    """Attach a new kernel and check it on real images; the network's output does not change yet.

    The seed goes DORMANT → GERMINATED → TRAINING. The kernel does not run in the network before it blends.

    Args:
        model: the network.
        graft: recipe entry of the kernel.
        images: a batch of the host's input.
        epoch: epochs finished.

    Raises:
        SurgeryError: the site is not free, the blueprint does not fit, or a check fails.
    """
    slot = model.slot(graft.site)
    _require(
        f"site {graft.site!r}, seed {slot.state}, {len(slot.grafts)} of {slot.max_kernels} kernels: cannot grow "
        f"{graft.blueprint_id!r} there",
        dormant=slot.state is _S.DORMANT,
        room=slot.has_room,
        fits=urza.get(graft.blueprint_id).fits(slot.site.kind, slot.site.in_shape, slot.site.out_shape),
    )
    before, args, kwargs = _observe(model, slot, images)
    added = model.graft(graft)
    try:
        kernel = slot.kernel(graft)
        if isinstance(kernel, ResidualBlock) and not slot.site.is_rectified:
            raise SurgeryError(
                f"{graft.blueprint_id!r} at {graft.site!r} would clip negative values of the block's output, which "
                "does not end in a ReLU; choose another blueprint"
            )
        result = tezzeret.check_kernel(kernel, args[0], slot.site.out_shape, *args[1:], **kwargs)
        if not result.is_open:
            raise SurgeryError(f"{graft.blueprint_id!r} at {graft.site!r} fails its check: {', '.join(result.failed)}")
        slot.enter(_S.GERMINATED, epoch=epoch)
        after, *_ = _observe(model, slot, images)
        _require(f"attaching {graft.blueprint_id!r} at {graft.site!r}", output_unchanged=torch.equal(before, after))
        slot.enter(_S.TRAINING, epoch=epoch)
    except BaseException:
        abort(model, graft)
        raise
    return Change(graft=graft, added=added, checks_passed=(*result.passed, "output_unchanged"))


def abort(model: MorphableModel, graft: Graft) -> None:
    """Undo a germination: remove the kernel, the seed is DORMANT again."""
    model.ungraft(graft)
    model.slot(graft.site).state = _S.DORMANT


def begin_blending(slot: SeedSlot, *, step: int, epoch: int) -> None:
    """TRAINING → BLENDING: from the next step on the kernel runs and trains with the host, at alpha 0 first."""
    slot.enter(_S.BLENDING, epoch=epoch)
    slot.blend_start = step


def set_alpha(slot: SeedSlot, *, step: int, blending_steps: int) -> float:
    """Set and return alpha for the next step: linear from 0 to 1 over `blending_steps`, 1 at once if that is 0."""
    assert slot.blend_start is not None
    alpha = 1.0 if blending_steps == 0 else min(1.0, (step - slot.blend_start + 1) / blending_steps)
    slot.alpha.fill_(alpha)
    return alpha


def hold(slot: SeedSlot, *, epoch: int) -> tuple[str, ...]:
    """BLENDING → HOLDING, once alpha is 1; returns the checks passed."""
    passed = _require(f"site {slot.site.name!r} cannot hold", alpha_is_one=float(slot.alpha) == 1.0)
    slot.enter(_S.HOLDING, epoch=epoch)
    return passed


def fossilize(slot: SeedSlot, *, epoch: int) -> Graft:
    """HOLDING → FOSSILIZED: the kernel is kept as part of the network."""
    graft = slot.live_graft
    slot.enter(_S.FOSSILIZED, epoch=epoch)
    return graft


def cull(model: MorphableModel, site: str, *, epoch: int) -> Change:
    """Remove the live kernel and nothing else; the seed goes to CULLED and EMBARGOED.

    Raises:
        SurgeryError: no kernel is live at the site.
    """
    slot = model.slot(site)
    graft = slot.live_graft
    removed = model.ungraft(graft)
    slot.enter(_S.CULLED, epoch=epoch)
    slot.enter(_S.EMBARGOED, epoch=epoch)
    return Change(graft=graft, removed=removed)


def _require(what: str, **checks: bool) -> tuple[str, ...]:
    result = gate(checks)
    if not result.is_open:
        raise SurgeryError(f"{what}: failed {', '.join(result.failed)}")
    return result.passed


def _observe(model: MorphableModel, slot: SeedSlot, images: Tensor) -> tuple[Tensor, list[Any], dict[str, Any]]:
    """The network's output, and arguments for the kernel, of some images, in eval mode; changes nothing.

    The arguments are those of `Kernel.branch`, of which the first is the kernel's input.
    """
    site, seen = slot.site, list[tuple[list[Any], dict[str, Any]]]()

    def read_input(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(([args[0]], {}))

    def read_output(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.append(([main_tensor(output), *args[1:]], kwargs))

    if site.kind == "after":
        hook = model.host.get_submodule(site.end).register_forward_hook(read_output, with_kwargs=True)
    else:
        hook = model.host.get_submodule(site.start).register_forward_pre_hook(read_input)
    try:
        with evaluating(model), torch.no_grad():
            output = model(images)
    finally:
        hook.remove()
    return output, *seen[0]
