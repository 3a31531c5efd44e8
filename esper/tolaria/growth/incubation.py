"""Incubation: training a kernel before it joins the host, and choosing the scale at which it enters.

Incubation uses the host's activations and gradients; the host stays bit-identical, batch-norm statistics included. Both
methods cost a forward and a backward pass of the host per step. A pilot found none better than inserting a kernel with
output scale 0.5 and training jointly; they exist for comparison with that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from esper.contracts.events import Incubated
from esper.costs import training_macs
from esper.devices import fork_rng
from esper.kasmina import MorphableModel, SeedSlot
from esper.kasmina.modes import preserved_buffers, unfrozen
from esper.tasks import Task
from esper.tolaria.evaluate import evaluate, lowest
from esper.tolaria.growth.lifecycle import Lifecycle

__all__ = ["SCALES", "incubate", "incubation_step", "try_scales"]

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Factors on the kernel's output that `try_scales` compares."""

_TARGET_RATIO = 0.1
"""`fit`: size of the target output relative to the activations it is added to (root mean squares)."""


def incubation_step(life: Lifecycle, slot: SeedSlot) -> None:
    """Train the slot's kernel on the batch of the next step; after `incubation_steps`, begin blending instead."""
    graft, state, config, step = slot.live_graft, life.state, life.config, life.step
    if state.global_step - graft.born_step >= config.incubation_steps:
        _finish(life, slot)
        return
    inputs, targets = step.loader.batch(state.epoch, state.step)
    incubate(
        life.model, slot, inputs, targets, task=step.task, method=config.incubation, context=step.training_forward()
    )
    step.all_reduce_gradients(num_images=len(targets))
    life.optimizer.step()  # only the kernel's parameters have gradients
    life.optimizer.zero_grad(set_to_none=True)
    macs = life.running_macs + life.kernel_cost(graft).num_macs
    state.ledger.incubation_macs += training_macs(step.loader.batch_size, macs)


def _finish(life: Lifecycle, slot: SeedSlot) -> None:
    graft, config, ranks = slot.live_graft, life.config, life.step.ranks
    kernel = slot.kernel(graft)
    ranks.broadcast(kernel.buffers())  # batch-norm statistics differ between ranks
    if not all(bool(p.isfinite().all()) for p in kernel.parameters()):
        life.cull(slot, reason="its weights are not finite after incubation")
        return
    scale, losses = 1.0, dict[float, float]()
    if config.alpha_search:
        losses = ranks.on_rank0(lambda: try_scales(life.model, slot, life.data.controller, life.step.task))
        scale = lowest(losses)
        kernel.scale_output(scale)
        num_images = len(SCALES) * life.data.num_controller
        life.state.ledger.incubation_macs += num_images * (life.running_macs + life.kernel_cost(graft).num_macs)
    life.emit(
        Incubated,
        epoch=life.state.epoch,
        site=graft.site,
        graft_id=graft.graft_id,
        method=config.incubation,
        num_steps=config.incubation_steps,
        alpha=scale,
        losses={f"{tried:g}": loss for tried, loss in losses.items()},
    )
    life.begin_blending(
        slot, reason=f"incubated for {config.incubation_steps} steps, joins with its output scaled by {scale:g}"
    )


def incubate(
    model: MorphableModel,
    slot: SeedSlot,
    inputs: Tensor,
    targets: Tensor,
    *,
    task: Task,
    method: str,
    context: AbstractContextManager[object],
) -> None:
    """Set the gradients of a slot's live kernel from a training batch; besides, only its batch-norm statistics change.

    `fit` minimises <g, f(x)> + |f(x)|² / (2 eta), with g the host's gradient at the site; without the second term the
    objective has no minimum. Up to a constant and a factor this is |f(x) + eta g|². For each batch, eta is such that
    the target -eta g has a tenth of the activations' size. `shadow` minimises the loss of the whole network with the
    kernel added in full.

    Args:
        model: the network, in training mode.
        slot: holds the kernel.
        inputs: a training batch.
        targets: its targets.
        task: its loss.
        method: fit or shadow.
        context: of the forward passes.
    """
    kernel = slot.kernel(slot.live_graft)
    with preserved_buffers(model, exclude=kernel), fork_rng(inputs.device):
        loss = (_fit if method == "fit" else _shadow)(model, slot, inputs, targets, task, context)
        parameters = list(kernel.parameters())
        for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = gradient


def try_scales(
    model: MorphableModel, slot: SeedSlot, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]], task: Task
) -> dict[float, float]:
    """Mean loss of the network with the live kernel's output multiplied by each of `SCALES`, in eval mode."""
    kernel = slot.kernel(slot.live_graft)
    saved = [p.detach().clone() for p in kernel.parameters()]
    losses = {}
    for scale in SCALES:
        kernel.scale_output(scale)
        with slot.live_kernel_replaced(kernel.combine):
            losses[scale], _ = evaluate(model, batches(), task)
        with torch.no_grad():
            for p, value in zip(kernel.parameters(), saved, strict=True):
                p.copy_(value)
    return losses


def _fit(
    model: MorphableModel,
    slot: SeedSlot,
    inputs: Tensor,
    targets: Tensor,
    task: Task,
    context: AbstractContextManager[object],
) -> Tensor:
    recorded: list[Tensor] = []

    def record(x: Tensor, y: Tensor) -> Tensor:
        copy = y.clone()  # not the tensor that is passed on, which an in-place operation may modify
        recorded[:] = [x.detach(), copy]
        return copy.clone()

    with context:
        with slot.live_kernel_replaced(record), unfrozen(model):
            host_loss = task.objective(model(inputs), targets)
        x, y = recorded
        (gradient,) = torch.autograd.grad(host_loss, y)
        size = _rms(y.detach())
        target = -_TARGET_RATIO * size / _rms(gradient) * gradient.float()
        output = slot.kernel(slot.live_graft)(x).float()
    loss = ((output - target) / size).square().mean()
    assert isinstance(loss, Tensor)
    return loss


def _shadow(
    model: MorphableModel,
    slot: SeedSlot,
    inputs: Tensor,
    targets: Tensor,
    task: Task,
    context: AbstractContextManager[object],
) -> Tensor:
    with context, slot.live_kernel_replaced(slot.kernel(slot.live_graft).combine):
        return task.objective(model(inputs), targets)


def _rms(x: Tensor) -> Tensor:
    return x.float().square().mean().sqrt().clamp(min=1e-12)
