"""How long a run trains: in optimizer steps, or in multiply-accumulates (MACs)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
    """

    total: int
    by_compute: bool
    steps_per_epoch: int
    batch_size: int
    warmup_steps: int
    warmup: int
    growth: tuple[tuple[float, int], ...] = ()

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

    def epochs(self, *, spent: int, image_macs: int) -> Iterator[int]:
        """What is spent after each further epoch until the budget is, as far as growth is known beforehand.

        Args:
            spent: what is spent now, at the beginning of an epoch.
            image_macs: MACs of training on one image, now.
        """
        while spent < self.total:
            spent += self.cost_of(self.steps_per_epoch, image_macs)
            yield spent
            image_macs = max([image_macs, *(grown for at, grown in self.growth if spent >= at * self.total)])

    def total_steps(self, state: TrainingState, image_macs: int) -> int:
        """Steps of the whole training, as far as growth is known beforehand."""
        if not self.by_compute:
            return self.total
        spent, steps = self.spent(state) - self.cost_of(state.step, image_macs), state.global_step - state.step
        for after in self.epochs(spent=spent, image_macs=image_macs):
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

    With `morphogenetic.schedule_by=compute` these are epochs of the network that the run ends with.

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
    times = sorted(growth.schedule_at) if is_planned else []
    added = costs_of_doubling(model, growth.copy_order, times=len(times)) if by_compute else []
    macs = [image_macs, *(image_macs + training_macs(1, cost.num_macs) for cost in added)]
    budget = Budget(
        total=round(optimization.max_macs or steps * batch_size * macs[-1]) if by_compute else steps,
        by_compute=by_compute,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
        warmup_steps=warmup_steps,
        warmup=warmup_steps * batch_size * macs[0] if by_compute else warmup_steps,
        growth=tuple(zip(times, macs[1:], strict=True)) if by_compute else (),
    )
    needed = budget.warmup + budget.cost_of(1, macs[0])
    if by_compute and budget.total < needed:
        raise ConfigError(
            f"optimization.max_macs={budget.total:.3g}: the warm-up of the learning rate "
            f"(optimization.warmup_epochs={optimization.warmup_epochs:g}) and one more step need {needed:.3g}"
        )
    return budget
