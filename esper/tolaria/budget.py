"""How long a run trains: in optimizer steps, or in multiply-accumulates (MACs)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from esper.configs import MorphogeneticConfig, OptimizationConfig
from esper.costs import training_macs
from esper.errors import ConfigError
from esper.kasmina import MorphableModel
from esper.kasmina.copies import costs_of_doubling
from esper.tolaria.state import TrainingState

__all__ = ["Budget", "plan_budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The length of a training, in a unit that is known before it begins.

    Attributes:
        total: MACs of the whole training, all that growth costs among them; or its optimizer steps.
        by_compute: whether the unit is MACs.
        steps_per_epoch: optimizer steps in an epoch.
        batch_size: images in a step.
        warmup_steps: steps in which the learning rate warms up.
        warmup: their part of the budget.
        growth: growth that is known beforehand: (fraction of the budget at which it happens, MACs of training on one
            image from then on), in order.
        too_late: those of `morphogenetic.schedule_at` that are skipped, as the first consultation from then on is after
            `growth_until`.
        too_soon: those that policy=stack skips, as the copies of the doubling before are still held.
        counts_skipped: whether `total` counts shares that are skipped; see `plan_budget`.
        epochs_between: epochs between consultations of Tamiyo, at which alone the network grows.
    """

    total: int
    by_compute: bool
    steps_per_epoch: int
    batch_size: int
    warmup_steps: int
    warmup: int
    growth: tuple[tuple[float, int], ...] = ()
    too_late: tuple[float, ...] = ()
    too_soon: tuple[float, ...] = ()
    counts_skipped: bool = False
    epochs_between: int = 1

    def spent(self, state: TrainingState) -> int:
        """What the training has used, in the budget's unit."""
        return state.ledger.total_macs if self.by_compute else state.global_step

    def progress(self, state: TrainingState) -> float:
        """Fraction of the budget that is spent."""
        return self.spent(state) / self.total

    def cost_of(self, num_steps: int, image_macs: int) -> int:
        """What steps cost in the budget's unit; `image_macs`: MACs of training on one image."""
        return num_steps * self.batch_size * image_macs if self.by_compute else num_steps

    def is_spent(self, state: TrainingState, image_macs: int) -> bool:
        """Whether the training ends here: another step would end further from the budget than this one does."""
        return 2 * (self.total - self.spent(state)) < self.cost_of(1, image_macs)

    def epochs(self, *, spent: int, image_macs: int, epoch: int = 0) -> Iterator[int]:
        """What is spent after each further epoch until the budget is, as far as growth is known beforehand.

        Args:
            spent: what is spent now, at the beginning of an epoch.
            image_macs: MACs of training on one image, now.
            epoch: epochs that are done.
        """
        while spent < self.total:
            spent += self.cost_of(self.steps_per_epoch, image_macs)
            epoch += 1
            yield spent
            if epoch % self.epochs_between == 0:
                image_macs = max([image_macs, *(grown for at, grown in self.growth if spent >= at * self.total)])

    def total_steps(self, state: TrainingState, image_macs: int) -> int:
        """Steps of the whole training, as far as growth is known beforehand."""
        if not self.by_compute:
            return self.total
        spent, steps = self.spent(state) - self.cost_of(state.step, image_macs), state.global_step - state.step
        for after in self.epochs(spent=spent, image_macs=image_macs, epoch=state.epoch):
            if after > self.total:
                return steps + round((self.total - spent) / (after - spent) * self.steps_per_epoch)
            spent, steps = after, steps + self.steps_per_epoch
        return steps


def plan_budget(
    optimization: OptimizationConfig,
    growth: MorphogeneticConfig,
    *,
    model: MorphableModel,
    image_macs: int,
    steps_per_epoch: int,
    batch_size: int,
) -> Budget:
    """The budget of a run: `optimization.max_macs`, or `max_epochs` epochs.

    With `morphogenetic.schedule_by=compute` these are epochs of the network that the run ends with. Shares of
    `schedule_at` that will be skipped do not count: of all numbers of doublings, the largest that takes place within
    the budget for as many; if there is none, as the length of the run decides what is skipped, all shares count.

    Args:
        optimization, growth: settings.
        model: the network; what it grew in this run makes no difference.
        image_macs: MACs of training on one image in the first step. What grows is taken to train in full, and to leave
            what frozen layers cost as it is; what is spent is counted exactly.
        steps_per_epoch, batch_size: see `Budget`.

    Raises:
        ConfigError: the budget does not last for the warm-up of the learning rate.
    """
    is_planned = growth.enable_tamiyo and growth.policy == "stack"
    by_compute = optimization.max_macs is not None or (is_planned and growth.schedule_by == "compute")
    steps = steps_per_epoch * optimization.max_epochs
    warmup_steps = round(optimization.warmup_epochs * steps_per_epoch)
    num_shares = len(growth.schedule_at) if is_planned and by_compute else 0
    added = costs_of_doubling(model, growth.copy_order, times=num_shares)
    macs = [image_macs, *(image_macs + training_macs(1, cost.num_macs) for cost in added)]

    def for_doublings(number: int) -> Budget:
        budget = Budget(
            total=round(optimization.max_macs or steps * batch_size * macs[number]) if by_compute else steps,
            by_compute=by_compute,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
            warmup_steps=warmup_steps,
            warmup=warmup_steps * batch_size * macs[0] if by_compute else warmup_steps,
            epochs_between=growth.adaptation_frequency,
        )
        return _with_growth(budget, growth, macs)

    for number in range(num_shares, -1, -1):
        budget = for_doublings(number)
        if optimization.max_macs or len(budget.growth) == number:
            break
    else:
        budget = replace(for_doublings(num_shares), counts_skipped=True)
    needed = budget.warmup + budget.cost_of(1, macs[0])
    if by_compute and budget.total < needed:
        raise ConfigError(
            f"optimization.max_macs={budget.total:.3g}: the warm-up of the learning rate "
            f"(optimization.warmup_epochs={optimization.warmup_epochs:g}) and one more step need {needed:.3g}"
        )
    return budget


def _with_growth(budget: Budget, growth: MorphogeneticConfig, macs: Sequence[int]) -> Budget:
    """Add which shares of `schedule_at` take place in a run of this length, and which are skipped.

    Follows `Growth` and the policy, epoch by epoch; what scores and verdicts cost, and copies that a verdict removes,
    are not foreseen.

    Args:
        budget: its length.
        growth: settings.
        macs: MACs of training on one image: in the first step, then after each doubling that is known beforehand.
    """
    waiting = sorted(growth.schedule_at) if growth.enable_tamiyo and growth.follows_schedule else []
    held_epochs = growth.holding_epochs + max(0, growth.blending_steps - 1) // budget.steps_per_epoch
    grown: list[float] = []
    too_soon: list[float] = []
    spent, last = 0, None
    for epoch in itertools.count(1):
        spent += budget.cost_of(budget.steps_per_epoch, macs[min(len(grown), len(macs) - 1)])
        progress = spent / budget.total
        if not waiting or progress >= growth.growth_until:
            break
        due = [at for at in waiting if at <= progress + 1e-9] if epoch % growth.adaptation_frequency == 0 else []
        if due and growth.policy == "stack":
            is_free = last is None or epoch - last >= held_epochs
            grown += due[:1] if is_free else []
            too_soon += due[1:] if is_free else due
            last = epoch if is_free else last
        waiting = waiting[len(due) :]
    known = tuple(zip(grown, macs[1:], strict=False))  # none with a budget in steps
    return replace(budget, growth=known, too_late=tuple(waiting), too_soon=tuple(too_soon))
