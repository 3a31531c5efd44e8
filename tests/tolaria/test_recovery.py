"""A growth that brings values that are not finite is undone and refused; the run goes on as if it had never grown."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esper.configs import TolariaConfig
from esper.contracts.events import Event, SurgeryEnded
from esper.errors import DivergenceError, RunError
from esper.report.run_record import read_run
from esper.tolaria import TolariaService, TolariaTrainer
from tests.conftest import journal_of, tiny_config
from tests.tolaria.checkpoints.test_resume import assert_same, train
from tests.tolaria.growth.test_stack import stacking
from tests.tolaria.processes import GROWS, train_together
from tests.tolaria.test_memory import refused

EXPLODES = {"morphogenetic__insertion_gain_rate": 1e30}
"""The learning rate of a newborn's output scale: the loss is not finite in the third step after growth."""


@pytest.mark.parametrize(
    "settings",
    [{}, {"morphogenetic__blending_steps": 4, "optimization__ema_decay": 0.9}, {"checkpoint__max_checkpoints": 1}],
    ids=["plain", "blending", "one checkpoint"],
)
def test_a_growth_that_brings_nan_is_undone_and_the_rest_is_as_without_it(
    settings: dict[str, Any], run_dir: Path, tmp_path: Path
) -> None:
    without, _ = train(tiny_config(morphogenetic__policy="never", **settings), tmp_path / "without")
    tensors, growth = train(tiny_config(**EXPLODES, **settings), run_dir)
    assert_same(tensors, without)
    assert read_run(run_dir).num_processes == 1
    (undone,) = journal_of(run_dir, "growth_undone")
    ((site, blueprint_id),) = undone["modules"]
    assert (undone["step"], undone["epoch"]) == (6, 1)
    assert undone["fault_step"] > 6
    assert "not finite" in undone["reason"]
    assert refused(growth) == [(site, blueprint_id)]
    assert growth["refusals"]["num_returns"] == 1
    assert growth["num_germinated"] == 0
    assert [event["step"] for event in journal_of(run_dir, "step")] == list(range(2, 19, 2))
    assert [event["epoch"] for event in journal_of(run_dir, "epoch")] == [1, 2, 3]
    assert not list((run_dir / "checkpoints").glob("before-*"))  # removed once nothing is on trial


def exploding_often(**changes: Any) -> TolariaConfig:
    """Grows at the end of each of the first epochs."""
    settings = {
        "morphogenetic__schedule_at": [0.1, 0.2, 0.3, 0.4, 0.5],
        "morphogenetic__growth_until": 0.6,
        "morphogenetic__adaptation_cooldown": 0,
        "optimization__max_epochs": 10,
    }
    return tiny_config(**EXPLODES, **settings | changes)


def test_the_fourth_time_the_run_fails_as_without_growth_to_blame(run_dir: Path) -> None:
    for _ in range(2):  # the same command fails in the same way
        with pytest.raises(DivergenceError, match=r"last growth: .* at layer"):
            train(exploding_often(), run_dir)
        undone = [tuple(map(tuple, event["modules"])) for event in journal_of(run_dir, "growth_undone")]
        assert len(undone) == len(set(undone)) == 3


def test_without_a_growth_on_trial_the_run_fails_at_once(run_dir: Path) -> None:
    hot = tiny_config(optimization__learning_rate=1e30, morphogenetic__growth_from=0.5)
    with pytest.raises(DivergenceError, match="there is no checkpoint yet"):
        train(hot, run_dir)
    assert journal_of(run_dir, "growth_undone") == []


@pytest.mark.parametrize("stop_at", [6, 7])
def test_it_holds_for_a_run_that_was_resumed_after_it_grew(stop_at: int, run_dir: Path, tmp_path: Path) -> None:
    whole, growth = train(tiny_config(**EXPLODES), tmp_path / "whole")
    train(tiny_config(**EXPLODES), run_dir, stop_at=stop_at)
    assert bool(journal_of(run_dir, "growth_undone")) == (stop_at == 7)
    resumed, same = train(tiny_config(**EXPLODES), run_dir)
    assert_same(resumed, whole)
    assert refused(same) == refused(growth) != []


@pytest.mark.long
def test_what_is_refused_stays_so_after_a_resume(run_dir: Path) -> None:
    config = exploding_often(morphogenetic__schedule_at=[0.1, 0.2], optimization__max_epochs=5)
    whole, growth = train(config, run_dir.with_name("whole"))
    assert len(refused(growth)) == 2
    train(config, run_dir, stop_at=6)
    train(config, run_dir, stop_at=13)
    parts, same = train(config, run_dir)
    assert_same(parts, whole)
    assert same == growth


def test_the_whole_doubling_is_one_growth(run_dir: Path, tmp_path: Path) -> None:
    """One copy of one stage is broken; those of the other stage go with it."""
    config = stacking()

    def break_it(event: Event) -> None:
        if isinstance(event, SurgeryEnded) and event.site.startswith("layer2"):
            with torch.no_grad():
                next(trainer.run.model.slot(event.site).parameters()).fill_(torch.nan)

    trainer = TolariaTrainer(config, run_dir=run_dir, listeners=[break_it])

    async def go() -> dict[str, Tensor]:
        await trainer.initialize()
        try:
            await trainer.train()
            return {name: value.clone() for name, value in trainer.run.model.state_dict().items()}
        finally:
            await trainer.shutdown()

    weights = asyncio.run(go())
    (undone,) = journal_of(run_dir, "growth_undone")
    assert [site for site, _ in undone["modules"]] == ["layer1.1:after", "layer2.1:after"]
    without, _ = train(stacking(morphogenetic__policy="never"), tmp_path / "without")
    assert_same(weights, {name: without[name] for name in weights})


@pytest.mark.parametrize("status", ["failed", "running"])
def test_a_run_that_cannot_be_opened_again_has_failed(run_dir: Path, status: str) -> None:
    config = tiny_config(**EXPLODES)
    service = TolariaService(config, run_dir=run_dir, listeners=[lambda event: spoil() if event.step == 6 else None])

    def spoil() -> None:
        config.model.widths = [4, 9]  # another network than that of the checkpoint
        if status == "running":  # the disk is full: how the run ended cannot be written either
            (run_dir / f".status.json.{socket.gethostname()}.{os.getpid()}").mkdir(exist_ok=True)

    async def go() -> None:
        try:
            await service.run_training()
        finally:
            await service.stop()

    with pytest.raises(RunError, match="holds a run of other settings"):
        asyncio.run(go())
    written = json.loads((run_dir / "status.json").read_text())
    assert written["status"] == status
    assert ("holds a run of other settings" in written["reason"]) == (status == "failed")


@pytest.mark.long
def test_two_ranks_undo_a_growth_as_one(tmp_path: Path) -> None:
    settings = (*GROWS, "optimization.max_epochs=2", f"hydra.run.dir={tmp_path}")
    train_together(*settings, "morphogenetic.insertion_gain_rate=1e30")  # ranks that differ end the run
    (undone,) = journal_of(tmp_path, "growth_undone")
    assert len(undone["modules"]) == 1
    assert [line["epoch"] for line in journal_of(tmp_path, "epoch")] == [1, 2]
    assert journal_of(tmp_path, "run_ended")[0]["result"]["num_grown"] == 0
