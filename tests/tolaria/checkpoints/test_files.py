from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import tempfile
import time
import warnings
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.contracts.recipe import Graft
from esper.errors import CheckpointError, WriteError
from esper.tolaria.checkpoints import files as checkpoint
from esper.tolaria.checkpoints.files import Snapshot


def snapshot(step: int = 3) -> Snapshot:
    weights = torch.arange(24.0).reshape(1, 4, 2, 3).to(memory_format=torch.channels_last)
    return Snapshot(
        step=step,
        model={"w": weights},
        optimizer={"w|momentum_buffer": weights * 2},
        state={"training": {"best_loss": float("inf"), "epoch": 1}},
        recipe=[Graft(graft_id=1, site="s:after", blueprint_id="b", init_seed=4, init_gain=0.5, born_step=2)],
        journal_offset=17,
        digest="abcd",
    )


def are_same(a: Snapshot, b: Snapshot) -> bool:
    def rest(saved: Snapshot) -> tuple[Any, ...]:
        return saved.step, saved.state, saved.recipe, saved.journal_offset, saved.digest

    tensors = [(a.model, b.model), (a.optimizer, b.optimizer)]
    return rest(a) == rest(b) and all(
        ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        for ours, theirs in tensors
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = snapshot()
    loaded = checkpoint.load(checkpoint.save(tmp_path, saved, prefix="step"))
    assert torch.equal(loaded.model["w"], saved.model["w"])
    assert torch.equal(loaded.optimizer["w|momentum_buffer"], saved.optimizer["w|momentum_buffer"])
    assert (loaded.state, loaded.recipe, loaded.journal_offset) == (saved.state, saved.recipe, 17)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_found(tmp_path: Path, name: str, damage: str) -> None:
    file = checkpoint.save(tmp_path, snapshot(), prefix="step") / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(content[:-3])
    else:
        content[-2] ^= 1
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(file.parent)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_any_bit_that_flips_is_found_or_changes_nothing(tmp_path: Path, name: str) -> None:
    file = checkpoint.save(tmp_path, snapshot(), prefix="step") / name
    content = file.read_bytes()
    expected, num_refused = checkpoint.load(file.parent), 0
    bits = range(0, 8 * len(content), 1 if name == "manifest.json" else 7)  # the others are hashed as they are
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            loaded = checkpoint.load(file.parent)
        except CheckpointError:
            num_refused += 1
        else:
            assert are_same(loaded, expected), f"bit {bit}"
    assert num_refused > 0.9 * len(bits)


@settings(max_examples=100)
@given(data=st.data())
def test_a_file_that_is_cut_grows_or_has_other_bytes_is_found_or_changes_nothing(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.save(Path(folder), snapshot(), prefix="step")
        expected = checkpoint.load(path)
        file = data.draw(st.sampled_from(sorted(path.iterdir())))
        content = file.read_bytes()
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, len(content)))
        file.write_bytes(content[:start] + data.draw(st.binary(max_size=20)) + content[end:])
        try:
            loaded = checkpoint.load(path)
        except CheckpointError:
            return
        assert are_same(loaded, expected)


@pytest.mark.parametrize("change", [{"step": 4}, {"recipe": []}, {"journal_offset": 0}, {"later": 1}, {"sha256": {}}])
def test_a_manifest_that_was_changed_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    file = checkpoint.save(tmp_path, snapshot(), prefix="step") / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(file.parent)


def test_a_manifest_of_version_0_1_0_has_no_checksum_and_loads(tmp_path: Path) -> None:
    file = checkpoint.save(tmp_path, snapshot(), prefix="step") / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"]["manifest.json"]
    file.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(file.parent)
    file.write_text(json.dumps(manifest | {"schema": 1}))
    assert checkpoint.load(file.parent).step == 3


def test_a_folder_without_a_manifest_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()
    assert checkpoint.find_checkpoints(tmp_path) == []
    with pytest.raises(CheckpointError, match="no manifest"):
        checkpoint.load(tmp_path / "step-00000001")


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, snapshot(), prefix="step")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"schema": 99}))
    with pytest.raises(CheckpointError, match="schema 99"):
        checkpoint.load(path)


def test_pruning_keeps_the_newest_and_the_newest_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, snapshot(step), prefix="step")
        checkpoint.save(tmp_path, snapshot(step), prefix="best")
    checkpoint.remove_old(tmp_path, keep=2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["best-00000004", "step-00000003", "step-00000004"]


@pytest.mark.parametrize("limit_bytes", [64, 1000])  # fails in the tensors, and in the manifest behind them
def test_a_save_that_does_not_fit_leaves_earlier_checkpoints_intact(tmp_path: Path, limit_bytes: int) -> None:
    good = checkpoint.save(tmp_path, snapshot(1), prefix="step")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))  # writing beyond it fails, as on a full disk
    try:
        with pytest.raises(CheckpointError, match="earlier checkpoints are intact"):
            checkpoint.save(tmp_path, replace(snapshot(2), digest="x" * 2000), prefix="step")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [good]
    checkpoint.load(good)


def test_a_run_folder_that_was_removed_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.save(tmp_path / "run" / "checkpoints", snapshot(), prefix="step")
    assert not any(tmp_path.iterdir())


def test_nothing_is_written_where_the_guard_says_so(tmp_path: Path) -> None:
    def guard() -> None:
        raise WriteError("not ours")

    with pytest.raises(WriteError, match="not ours"):
        checkpoint.save(tmp_path / "checkpoints", snapshot(), prefix="step", guard=guard)
    assert not any(tmp_path.iterdir())


def save_without_end(folder: Path, ready: Event) -> None:
    weights = torch.zeros(400_000)
    for step in range(10_000):
        weights += 1
        tensors = {"model": {"w": weights}, "optimizer": {"w|m": weights}}
        checkpoint.save(folder, replace(snapshot(step), **tensors), prefix="step")
        checkpoint.remove_old(folder, keep=2)
        ready.set()


def test_killing_a_process_while_it_saves_never_costs_the_last_checkpoint(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")  # importing torch anew takes longer than the whole test
    for delay_s in (0.03, 0.05, 0.08, 0.13):
        ready = fork.Event()
        process = fork.Process(target=save_without_end, args=(tmp_path, ready), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads are not copied, and are not needed
            process.start()
        try:
            assert ready.wait(60)
            time.sleep(delay_s)
        finally:
            process.kill()
            process.join()
        newest = checkpoint.find_checkpoints(tmp_path)[0]
        loaded = checkpoint.load(newest)
        assert torch.equal(loaded.model["w"], torch.full((400_000,), float(loaded.step + 1)))


def test_pruning_leaves_all_names_alone_that_are_not_exactly_its_own(tmp_path: Path) -> None:
    good = checkpoint.save(tmp_path, snapshot(1), prefix="step")
    others = [
        "step-00000001.backup", "step-00000009.bak", "step-9", "step-00000001 (copy)", "my-step-00000001", "best-old",
        ".step-00000001.77.bak", ".cache-1", "notes",
    ]  # fmt: skip
    for name in others:
        shutil.copytree(good, tmp_path / name)
    newest = checkpoint.save(tmp_path, snapshot(2), prefix="step")
    checkpoint.remove_old(tmp_path, keep=1)
    checkpoint.recover(tmp_path)
    assert checkpoint.find_checkpoints(tmp_path) == [newest]
    checkpoint.move_to_abandoned(tmp_path, after_step=0)
    assert {path.name for path in tmp_path.iterdir()} == {*others, "abandoned"}
    visible = [name for name in others if not name.startswith(".")]
    assert checkpoint.find_others(tmp_path) == sorted(visible)


def test_steps_of_more_than_eight_digits_are_in_order(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        checkpoint.save(tmp_path, snapshot(step), prefix="step")
    checkpoint.remove_old(tmp_path, keep=1)
    assert [path.name for path in checkpoint.find_checkpoints(tmp_path)] == ["step-100000000"]
