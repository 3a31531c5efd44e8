from __future__ import annotations

import pytest

from esper.configs import OptimizationConfig
from esper.tolaria.budget import Budget
from esper.tolaria.schedule import learning_rate, newborn_warmup


def rates(scheduler: str, **changes: float) -> list[float]:
    config = OptimizationConfig(
        scheduler=scheduler, learning_rate=1.0, **({"warmup_epochs": 2.0, "decay_fraction": 0.5} | changes)
    )
    budget = Budget(total=20, by_compute=False, steps_per_epoch=2, batch_size=1, warmup_steps=4, warmup=4)
    return [learning_rate(config, step, budget=budget, spent=step) for step in range(20)]


@pytest.mark.parametrize("scheduler", ["constant", "cosine", "linear", "wsd"])
def test_warmup_rises_linearly_to_the_peak(scheduler: str) -> None:
    assert rates(scheduler)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize(
    ("scheduler", "last"), [("constant", 1.0), ("cosine", 0.00961), ("linear", 1 / 16), ("wsd", 0.1)]
)
def test_the_last_step_is_one_step_before_the_end_of_the_decay(scheduler: str, last: float) -> None:
    assert rates(scheduler)[-1] == pytest.approx(last, rel=1e-3)


def test_wsd_is_constant_until_the_decay() -> None:
    assert rates("wsd")[4:11] == [1.0] * 7
    assert rates("wsd")[11] < 1.0


def test_newborns_warm_up_from_their_own_birth() -> None:
    assert [newborn_warmup(step=s, born_step=10, warmup_steps=4) for s in (10, 11, 13, 20)] == [0.25, 0.5, 1.0, 1.0]
    assert newborn_warmup(step=0, born_step=None, warmup_steps=4) == 1.0
    assert newborn_warmup(step=10, born_step=10, warmup_steps=0) == 1.0
