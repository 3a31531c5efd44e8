"""Short forks of a run: train a few steps with a kernel, measure the loss, rewind; choose the site by their losses."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim import Optimizer

from esper.contracts.decisions import AdaptationDecision
from esper.contracts.events import Forked
from esper.devices import fork_rng
from esper.errors import EsperError, MemoryLimitError, SurgeryError
from esper.kasmina import SeedSlot, surgery
from esper.tolaria.evaluate import evaluate, lowest
from esper.tolaria.growth.lifecycle import Lifecycle
from esper.tolaria.growth.targets import first_blueprint, resolve
from esper.tolaria.optim import set_learning_rates
from esper.tolaria.step import TrainStep

__all__ = ["choose_by_forks", "rewound"]

Schedule = Callable[[int], float]
"""The host's learning rate so many steps ahead."""


def choose_by_forks(life: Lifecycle, decision: AdaptationDecision, *, schedule: Schedule) -> AdaptationDecision:
    """Replace a decision's site by the one, among it and the alternatives, whose fork has the lowest controller loss.

    Sites where the kernel cannot grow are skipped. If that is all of them, the decision keeps its site, and is refused
    when it is carried out.
    """
    blueprints = dict(decision.alternatives)
    with contextlib.suppress(SurgeryError):
        slot = resolve(life.model, decision)
        blueprints = {slot.site.name: decision.blueprint_id or first_blueprint(life, slot), **blueprints}
    losses: dict[str, float] = {}
    for site, blueprint_id in blueprints.items():
        with contextlib.suppress(EsperError):
            losses[site] = _fork(life, life.model.slot(site), blueprint_id, schedule)
    if not losses:
        return dataclasses.replace(decision, alternatives=())
    best = lowest(losses)
    shown = ", ".join(f"{site} {loss:.4f}" for site, loss in losses.items())
    return dataclasses.replace(
        decision,
        site=best,
        target_layer=life.model.slot(best).site.layer,
        blueprint_id=blueprints[best],
        alternatives=(),
        reasoning=f"{decision.reasoning}; forks of {life.config.fork_steps} steps ended at loss {shown}",
    )


def _fork(life: Lifecycle, slot: SeedSlot, blueprint_id: str, schedule: Schedule) -> float:
    """Loss on the controller split after `fork_steps` with a kernel here, the learning rate decaying to 0.

    Raises:
        EsperError: the kernel cannot grow here, or needs more memory than there is.
    """
    started, num_steps, state_epoch = time.monotonic(), life.config.fork_steps, slot.state_epoch
    epoch, first_step = life.state.epoch, life.state.global_step
    graft = life.new_graft(slot, blueprint_id)
    with rewound(life.model, life.optimizer, life.step):
        life.attach(graft)
        try:
            surgery.begin_blending(slot, step=first_step, epoch=epoch)
            surgery.set_alpha(slot, step=first_step, blending_steps=0)
            for i in range(num_steps):
                learning_rate = schedule(i) * (1.0 - i / num_steps)
                set_learning_rates(life.optimizer, learning_rate, step=first_step + i)
                epochs_ahead, index = divmod(i, life.step.loader.num_batches)
                life.step.forward_backward_update(epoch=epoch + epochs_ahead, index=index, step=first_step + i)
            loss, _ = life.step.ranks.on_rank0(lambda: evaluate(life.model, life.data.controller(), life.step.task))
            macs, image_macs = life.running_macs, life.image_macs
        except MemoryLimitError as error:
            raise life.refuse(graft, str(error)) from None
        finally:
            life.undo(graft)
            slot.state_epoch = state_epoch
    cost_macs = num_steps * life.step.loader.batch_size * image_macs + life.data.num_controller * macs
    life.state.ledger.forking_macs += cost_macs
    life.emit(
        Forked,
        epoch=life.state.epoch,
        site=graft.site,
        blueprint_id=graft.blueprint_id,
        num_steps=num_steps,
        loss=loss,
        cost_macs=cost_macs,
        cost_s=time.monotonic() - started,
    )
    return loss


@contextmanager
def rewound(model: nn.Module, optimizer: Optimizer, step: TrainStep) -> Iterator[None]:
    """Context manager: restore weights, buffers, optimizer state, EMA, sums, loss scale, random state, bit-identical.

    Parameters added to the model and the optimizer inside must be removed before the end.
    """
    states = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    averages = step.ema.sums.values() if step.ema is not None else ()
    tensors = [*model.parameters(), *model.buffers(), *states, *averages, step.sums.epoch, step.sums.bad_step]
    saved = [tensor.detach().clone() for tensor in tensors]
    scale = step.scaler.state_dict()
    try:
        with fork_rng(step.device):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
        step.scaler.load_state_dict(scale)
