"""Saving while training continues: a checkpoint has the state at the time of `start`."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
import torch

from esper.errors import CheckpointError
from esper.tolaria import TolariaTrainer
from esper.tolaria.checkpoints import files as checkpoint
from esper.tolaria.checkpoints.writer import CheckpointWriter
from tests.conftest import journal_of, tiny_config, use


def snapshot(weight: torch.Tensor, *, step: int) -> checkpoint.Snapshot:
    return checkpoint.Snapshot(
        step=step, model={"weight": weight}, optimizer={}, state={}, recipe=[], journal_offset=0, digest="d"
    )


def test_a_checkpoint_holds_the_weights_of_the_moment_it_was_begun(tmp_path: Path) -> None:
    weight = torch.zeros(256, 1024)
    writer = CheckpointWriter(tmp_path, keep=9, sync=lambda: None)
    for step in range(1, 5):
        weight.fill_(step)
        writer.start(snapshot(weight, step=step), epoch=step)
    weight.fill_(-1)
    saved = writer.collect()
    writer.close()
    assert [one.epoch for one in saved] == [1, 2, 3, 4]
    assert [float(checkpoint.load(one.path).model["weight"].mean()) for one in saved] == [1, 2, 3, 4]


def test_a_checkpoint_holds_the_counters_of_the_moment_it_was_begun(tmp_path: Path) -> None:
    released = threading.Event()
    writer = CheckpointWriter(tmp_path, keep=9, sync=released.wait)
    live = {"growth": {"last_adaptation": {"layer1": 1}}}
    writer.start(dataclasses.replace(snapshot(torch.zeros(3), step=1), state=live), epoch=1)
    live["growth"]["last_adaptation"]["layer2"] = 2
    released.set()
    (saved,) = writer.collect()
    writer.close()
    assert checkpoint.load(saved.path).state == {"growth": {"last_adaptation": {"layer1": 1}}}


def test_a_checkpoint_that_cannot_be_written_is_reported_at_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    writer = CheckpointWriter(tmp_path / "checkpoints", keep=2, sync=lambda: None)
    writer.start(snapshot(torch.zeros(3), step=1), epoch=1)
    with pytest.raises(CheckpointError, match="cannot save"):
        writer.collect()
    writer.start(snapshot(torch.zeros(3), step=2), epoch=2)
    assert "cannot save" in (writer.close() or "")


def test_a_checkpoint_that_cannot_be_written_does_not_hide_those_that_were(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=9, sync=lambda: None)
    writer.start(snapshot(torch.zeros(3), step=1), epoch=1)
    writer.wait()
    blocked = tmp_path / "step-00000002"
    blocked.write_text("a file where a checkpoint should be")
    writer.start(snapshot(torch.zeros(3), step=2), epoch=2)
    writer.wait()
    with pytest.raises(CheckpointError):
        writer.collect()
    assert [one.epoch for one in writer.collect()] == [1]
    writer.close()


def test_every_checkpoint_is_journalled_once_it_is_complete(run_dir: Path) -> None:
    config = tiny_config(optimization__max_epochs=2, morphogenetic__policy="never", checkpoint__max_checkpoints=9)
    use(config, run_dir, lambda trainer: trainer.train())
    entries = journal_of(run_dir)
    paths = [entry["path"] for entry in entries if entry["kind"] == "checkpoint" and not entry["is_best"]]
    assert paths == ["checkpoints/step-00000006", "checkpoints/step-00000012"]
    assert entries[-1]["kind"] == "run_ended"


def test_what_is_being_saved_is_complete_after_shutdown(run_dir: Path) -> None:
    async def body(trainer: TolariaTrainer) -> None:
        await trainer.train_epoch()
        await trainer.handle_end_of_epoch()

    use(tiny_config(morphogenetic__policy="never"), run_dir, body)
    assert [path.name for path in checkpoint.find_checkpoints(run_dir / "checkpoints")] == ["step-00000006"]


def test_no_checkpoint_is_there_before_the_journal_it_refers_to_is_on_disk(tmp_path: Path) -> None:
    seen: list[list[Path]] = []
    writer = CheckpointWriter(tmp_path, keep=9, sync=lambda: seen.append(checkpoint.find_checkpoints(tmp_path)))
    writer.start(snapshot(torch.zeros(3), step=1), epoch=1)
    writer.collect()
    writer.close()
    assert seen == [[]]
    assert len(checkpoint.find_checkpoints(tmp_path)) == 1


def test_the_same_network_is_copied_once_for_two_checkpoints_but_the_random_state_again(tmp_path: Path) -> None:
    weight, state = torch.zeros(64), torch.zeros(8, dtype=torch.uint8)
    both = {"rng|cpu": state, "weight|momentum": torch.ones(64)}
    writer = CheckpointWriter(tmp_path, keep=9, sync=lambda: None)
    writer.start(dataclasses.replace(snapshot(weight, step=1), optimizer=both), epoch=1, prefix="best")
    weight.fill_(1)  # would be a fault of the caller: shows that the second checkpoint holds the first copy
    state.fill_(7)
    writer.start(dataclasses.replace(snapshot(weight, step=1), optimizer=both), epoch=1, is_same_network=True)
    best, step = (checkpoint.load(one.path) for one in writer.collect())
    assert torch.equal(best.model["weight"], step.model["weight"])
    assert torch.equal(best.optimizer["weight|momentum"], step.optimizer["weight|momentum"])
    assert [int(one.optimizer["rng|cpu"][0]) for one in (best, step)] == [0, 7]
    writer.start(snapshot(weight, step=2), epoch=2, is_same_network=True)  # no copy is left: it is made again
    (last,) = writer.collect()
    writer.close()
    assert float(checkpoint.load(last.path).model["weight"].mean()) == 1


def test_what_grew_after_the_best_checkpoint_is_in_the_one_at_the_end_of_the_epoch(run_dir: Path) -> None:
    config = tiny_config(checkpoint__max_checkpoints=9, morphogenetic__judged=False, optimization__max_epochs=2)
    use(config, run_dir, lambda trainer: trainer.train())
    step = checkpoint.load(run_dir / "checkpoints" / "step-00000006")
    assert len(step.recipe) == 1
    assert any(f".k{step.recipe[0].graft_id}." in name for name in step.model)
