"""Growing and culling again and again leaves nothing behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.memory_arms import census
from benchmarks.stepping import train_steps
from esper.contracts.decisions import Action, AdaptationDecision
from esper.tolaria import TolariaTrainer
from tests.conftest import tiny_config, use

OF_THE_PROCESS = "rss_bytes"


@pytest.fixture
def _only_new_objects() -> Iterator[None]:
    """The garbage collector passes over what is there already: a million objects of imports and other tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_only_new_objects")
@pytest.mark.parametrize("num_cycles", [3, pytest.param(50, marks=pytest.mark.long)])
def test_modules_that_are_grown_and_culled_leave_nothing_behind(run_dir: Path, num_cycles: int) -> None:
    async def body(trainer: TolariaTrainer) -> None:
        run = trainer.run
        site = "layer1.0:after"
        seen = []
        for number in range(num_cycles):
            train_steps(run, 1)
            assert run.growth.apply(AdaptationDecision(should_adapt=True, site=site))
            train_steps(run, 1)
            if number == 0:
                grown = census(run)
            assert run.growth.apply(AdaptationDecision(should_adapt=True, site=site, action=Action.CULL))
            run.growth.advance_seeds(is_last=False)  # the embargo ends
            if number in (0, 1, num_cycles - 1):
                train_steps(run, 1)
                seen.append(census(run))
        for one in (grown, *seen):
            one.pop(OF_THE_PROCESS)
        assert run.life.num_germinated == num_cycles
        assert seen[-1] == seen[-2] == seen[0]
        for counted in ("tensors", "tensor_bytes", "parameters", "modules", "optimizer_entries", "esper_objects"):
            assert grown[counted] > seen[0][counted], f"a module more must show in {counted}"

    config = tiny_config(
        morphogenetic__adaptation_cooldown=0, morphogenetic__policy="never", optimization__max_epochs=200
    )
    use(config, run_dir, body)
