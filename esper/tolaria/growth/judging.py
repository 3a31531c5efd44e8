"""The judge: losses with and without a live kernel on the judge split, and the verdict to keep or cull it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from esper.contracts.events import Judged
from esper.kasmina import MorphableModel, SeedSlot
from esper.kasmina.modes import preserved_buffers, reestimate_norms
from esper.tamiyo import Verdict, judge, significance_of
from esper.tasks import Task, by_example
from esper.tolaria.evaluate import measure
from esper.tolaria.growth.lifecycle import Lifecycle

__all__ = ["judge_kernel", "paired_losses"]


def judge_kernel(life: Lifecycle, slot: SeedSlot) -> None:
    """Judge the live kernel of a slot, and keep or cull it."""
    started = time.monotonic()
    graft, cost = slot.live_graft, life.kernel_cost(slot.live_graft)
    life.num_verdicts += 1
    significance = significance_of(life.num_verdicts, confidence=life.config.judge_confidence)
    verdict = life.step.ranks.on_rank0(lambda: _verdict(life, slot, significance=significance))
    cost_macs = 2 * (life.data.num_judge + life.data.num_norm) * life.cost.num_macs
    life.state.ledger.judging_macs += cost_macs
    life.emit(
        Judged,
        epoch=life.state.epoch,
        graft_id=graft.graft_id,
        site=graft.site,
        blueprint_id=graft.blueprint_id,
        **dataclasses.asdict(verdict),
        confidence=1.0 - significance,
        added_parameters=cost.num_parameters,
        added_macs=cost.num_macs,
        cost_macs=cost_macs,
        cost_s=time.monotonic() - started,
    )
    bound = f"lower bound {verdict.lower_bound:.4f}, threshold {verdict.threshold:.4f}"
    if verdict.kept:
        life.keep(slot, reason=f"kept: {bound}")
    else:
        life.cull(slot, reason=f"not shown to help: {bound}")


def _verdict(life: Lifecycle, slot: SeedSlot, *, significance: float) -> Verdict:
    config, kernel_macs = life.config, life.kernel_cost(slot.live_graft).num_macs
    loss_off, loss_on = paired_losses(
        life.model, slot, task=life.step.task, judge_batches=life.data.judge, norm_images=life.data.norm_images
    )
    return judge(
        loss_off,
        loss_on,
        improvement_threshold=config.improvement_threshold,
        significance=significance,
        rent=config.cost_rent * kernel_macs / life.host_cost.num_macs,
    )


def paired_losses(
    model: MorphableModel,
    slot: SeedSlot,
    *,
    task: Task,
    judge_batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    norm_images: Callable[[], Iterable[Tensor]],
) -> tuple[Tensor, Tensor]:
    """Losses of the judge split's examples without and with the live kernel; the model is bit-identical afterwards.

    Batch-norm statistics are re-estimated for either case from the same training images: statistics gathered with the
    kernel would make the network without it look worse than it is. Co-adaptation still overstates the kernel's value:
    the host has been trained with it.

    Returns:
        (loss off, loss on), float32 (N,) each; of text, the mean loss of each window: its tokens are not independent.
    """
    with preserved_buffers(model):
        reestimate_norms(model, norm_images())
        loss_on, _ = measure(model, judge_batches(), task)
        with slot.live_kernel_disabled():
            reestimate_norms(model, norm_images())
            loss_off, _ = measure(model, judge_batches(), task)
    return torch.cat([*map(by_example, loss_off)]), torch.cat([*map(by_example, loss_on)])
