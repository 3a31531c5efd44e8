from __future__ import annotations

from pathlib import Path

import pytest

from esper.tolaria import TolariaTrainer
from tests.conftest import tiny_config, use


def test_a_dry_run_grows_and_estimates_the_time_of_the_whole_training(run_dir: Path):
    async def measured(trainer: TolariaTrainer) -> None:
        report = await trainer.dry_run()
        run = trainer.run
        assert report.num_parameters == run.host_cost.num_parameters
        assert report.total_steps == 18
        assert run.state.global_step == 18  # not beyond the schedule's end
        assert report.seconds == pytest.approx(18 * report.step_seconds)
        assert len(run.model.recipe) == 1
        assert report.lines[3] == f"growth     {run.model.recipe[0].blueprint_id} at {run.model.recipe[0].site}"

    use(tiny_config(), run_dir, measured)
