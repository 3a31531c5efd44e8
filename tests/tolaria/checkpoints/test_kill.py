"""A process that is killed while it saves over an existing checkpoint, or prunes, never loses the last one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.errors import CheckpointError
from esper.tolaria.checkpoints import files as checkpoint
from tests.tolaria.checkpoints.test_files import snapshot

CHANGES = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"})


def of_weight(value: float, *, step: int = 3) -> checkpoint.Snapshot:
    return replace(snapshot(step), model={"w": torch.full((4,), value)})


def save_and_die(folder: Path, saved: checkpoint.Snapshot, prefix: str, die_at: int) -> None:
    """Save and prune; die just before the file system is touched for the `die_at`-th time."""
    num_changes = 0

    def hook(event: str, _: tuple[Any, ...]) -> None:
        nonlocal num_changes
        if event in CHANGES:
            num_changes += 1
            if num_changes == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    checkpoint.save(folder, saved, prefix=prefix)
    checkpoint.remove_old(folder, keep=1)


def killed(folder: Path, saved: checkpoint.Snapshot, *, prefix: str, die_at: int) -> bool:
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=save_and_die, args=(folder, saved, prefix, die_at))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("prefix", ["step", "best", "trunk"])
@pytest.mark.parametrize("step", [3, 4])  # replaces the only checkpoint; makes it the one to prune
def test_killed_anywhere_the_old_checkpoint_loads_or_the_new_one(tmp_path: Path, prefix: str, step: int) -> None:
    die_at, found = 0, set()
    while True:
        die_at += 1
        folder = tmp_path / str(die_at)
        checkpoint.save(folder, of_weight(1), prefix=prefix)
        was_killed = killed(folder, of_weight(2, step=step), prefix=prefix, die_at=die_at)
        checkpoint.recover(folder)
        loaded = checkpoint.load(checkpoint.find_checkpoints(folder, prefix=prefix)[0])
        found.add(float(loaded.model["w"][0]))
        checkpoint.remove_old(folder, keep=1)
        assert [path.name for path in folder.iterdir()] == [f"{prefix}-{loaded.step:08d}"]  # no leftovers
        if not was_killed:
            break
    assert found == {1, 2}
    assert die_at > 8


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    for prefix in ("step", "best", "trunk"):
        first = checkpoint.save(tmp_path, snapshot(), prefix=prefix).stat()
        assert checkpoint.save(tmp_path, replace(snapshot(), journal_offset=99), prefix=prefix).stat() == first


def test_other_contents_and_damaged_ones_of_the_same_step_are_replaced(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, of_weight(1), prefix="step")
    checkpoint.save(tmp_path, of_weight(2), prefix="step")
    assert checkpoint.load(path).model["w"].tolist() == [2] * 4
    (path / "state.json").write_text("{}")
    checkpoint.save(tmp_path, of_weight(2), prefix="step")
    assert checkpoint.load(path).model["w"].tolist() == [2] * 4
    assert list(tmp_path.iterdir()) == [path]


def test_a_leftover_that_is_incomplete_is_not_recovered(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, snapshot(), prefix="step")
    (path / "state.json").unlink()
    path.rename(tmp_path / f".{path.name}.77")
    checkpoint.recover(tmp_path)
    assert checkpoint.find_checkpoints(tmp_path) == []


@pytest.mark.parametrize("damaged", [[2, 3], [1, 2, 3]])
def test_pruning_keeps_the_last_one_that_loads(tmp_path: Path, damaged: list[int]) -> None:
    paths = [checkpoint.save(tmp_path, snapshot(step), prefix="step") for step in (0, 1, 2, 3)]
    for step in damaged:
        (paths[step] / "state.json").write_text("{}")
    checkpoint.remove_old(tmp_path, keep=2)
    good = min(damaged) - 1
    checkpoint.load(paths[good])
    assert sorted(tmp_path.iterdir()) == [paths[good], paths[2], paths[3]]


def test_a_rename_that_fails_puts_the_old_checkpoint_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint.save(tmp_path, of_weight(1), prefix="step")
    rename = os.rename

    def fails_once(source: Any, target: Any) -> None:
        if str(source).endswith(f".{os.getpid()}"):
            raise OSError("Disk quota exceeded")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_once)
    with pytest.raises(CheckpointError, match="earlier checkpoints are intact"):
        checkpoint.save(tmp_path, of_weight(2), prefix="step")
    assert checkpoint.load(path).model["w"].tolist() == [1] * 4
    assert list(tmp_path.iterdir()) == [path]
