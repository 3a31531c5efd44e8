"""A run that stops anywhere and goes on gives the same bits as one that never stopped."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esper.configs import TolariaConfig
from esper.errors import ConfigError, RunError
from esper.tolaria import TolariaTrainer
from esper.tolaria.checkpoints import files as checkpoint
from esper.tolaria.checkpoints.contents import snapshot
from tests.conftest import journal_of, tiny_config


def everything(trainer: TolariaTrainer) -> dict[str, Tensor]:
    saved = snapshot(trainer.run)
    return {**saved.model, **saved.optimizer}


def train(
    config: TolariaConfig, run_dir: Path, *, stop_at: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train to the end, or to a step; returns every tensor and the counters."""
    trainer = TolariaTrainer(config, run_dir=run_dir)

    async def go() -> tuple[dict[str, Tensor], dict[str, Any]]:
        await trainer.initialize()
        step = trainer.run.step

        class Stopping(type(step)):  # type: ignore[misc]
            def forward_backward_update(self, *, epoch: int, index: int, step: int) -> None:
                super().forward_backward_update(epoch=epoch, index=index, step=step)
                if stop_at is not None and step + 1 == stop_at:
                    trainer.request_stop("test")

        step.__class__ = Stopping
        try:
            await trainer.train()
            tensors = {name: value.clone() for name, value in everything(trainer).items()}
            return tensors, {"recipe": trainer.run.model.recipe, **trainer.run.life.state_dict()}
        finally:
            await trainer.shutdown()

    return asyncio.run(go())


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Any]]:
    torch.set_num_threads(1)
    return train(tiny_config(morphogenetic__blending_steps=4), tmp_path_factory.mktemp("straight") / "run")


@pytest.mark.parametrize("stop_at", [1, 5, 6, 7, 8, 9, 11, 12, 13, 17])
def test_stopping_at_any_step_before_inside_and_after_growth_changes_no_bit(
    straight: tuple[dict[str, Tensor], dict[str, Any]], run_dir: Path, stop_at: int
) -> None:
    config = tiny_config(morphogenetic__blending_steps=4)
    train(config, run_dir, stop_at=stop_at)
    assert json.loads((run_dir / "status.json").read_text())["status"] == "interrupted"
    finished, growth = train(config, run_dir)
    assert growth == straight[1]
    assert growth["num_germinated"] == 1
    assert_same(finished, straight[0])


def test_any_optimizer_resumes_amid_growth_with_its_ema(tmp_path: Path) -> None:
    config = tiny_config(
        optimization__optimizer="nadam",
        optimization__optimizer_options={"betas": [0.8, 0.99]},
        optimization__learning_rate=0.01,
        optimization__ema_decay=0.9,
    )
    tensors, growth = train(config, tmp_path / "straight")
    stopped, _ = train(config, tmp_path / "stopped", stop_at=9)
    assert any("mu_product" in name and "slots" in name for name in stopped)
    resumed, resumed_growth = train(config, tmp_path / "stopped")
    assert_same(tensors, resumed)
    assert growth == resumed_growth


def test_a_process_that_dies_without_a_word_resumes_from_the_last_epoch(
    straight: tuple[dict[str, Tensor], dict[str, Any]], run_dir: Path
) -> None:
    config = tiny_config(morphogenetic__blending_steps=4)
    train(config, run_dir, stop_at=9)
    newest = checkpoint.find_checkpoints(run_dir / "checkpoints")[0]
    assert newest.name == "step-00000009"
    shutil.rmtree(newest)  # as if it had been killed before it could save
    finished, _ = train(config, run_dir)
    assert_same(finished, straight[0])
    abandoned = (run_dir / "journal.abandoned.jsonl").read_text().splitlines()
    assert any(json.loads(line)["kind"] == "run_ended" for line in abandoned)
    logged = [line["step"] for line in journal_of(run_dir, "step")]
    assert logged == [2, 4, 6, 8, 10, 12, 14, 16, 18]


def test_a_damaged_checkpoint_is_passed_over_and_said_so(
    straight: tuple[dict[str, Tensor], dict[str, Any]], run_dir: Path
) -> None:
    config = tiny_config(morphogenetic__blending_steps=4)
    train(config, run_dir, stop_at=9)
    newest = checkpoint.find_checkpoints(run_dir / "checkpoints")[0]
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    finished, _ = train(config, run_dir)
    assert_same(finished, straight[0])
    notices = journal_of(run_dir, "notice")
    assert "is damaged: its SHA-256 differs from manifest.json; resumed from step-00000006" in notices[0]["message"]


@pytest.mark.parametrize("damage", ["flip", "remove", "empty"])
def test_a_damaged_manifest_is_passed_over_and_said_so(
    straight: tuple[dict[str, Tensor], dict[str, Any]], run_dir: Path, damage: str
) -> None:
    config = tiny_config(morphogenetic__blending_steps=4)
    train(config, run_dir, stop_at=9)
    manifest = checkpoint.find_checkpoints(run_dir / "checkpoints")[0] / "manifest.json"
    if damage == "remove":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text().replace('"step": 9', '"step": 8') if damage == "flip" else "")
    finished, _ = train(config, run_dir)
    assert_same(finished, straight[0])
    (notice,) = notices(run_dir)
    assert "step-00000009" in notice
    assert "manifest.json" in notice
    assert notice.endswith("; resumed from step-00000006")


def test_a_checkpoint_of_another_network_is_refused(run_dir: Path, tmp_path: Path) -> None:
    train(tiny_config(), run_dir, stop_at=9)
    source = checkpoint.find_checkpoints(run_dir / "checkpoints")[0]
    other = tiny_config(checkpoint__resume_from=str(source), model__widths=[4, 6])
    with pytest.raises(ConfigError, match=rf"resume_from={source}: .* holds another network: .*{run_dir}/config.yaml"):
        train(other, tmp_path / "other" / "run")


def test_resume_from_takes_up_another_run(run_dir: Path, tmp_path: Path) -> None:
    train(tiny_config(), run_dir, stop_at=9)
    source = checkpoint.find_checkpoints(run_dir / "checkpoints")[0]
    longer = tiny_config(checkpoint__resume_from=str(source), optimization__max_epochs=4)
    _, growth = train(longer, tmp_path / "other" / "run")
    assert growth["num_germinated"] >= 1  # one was grown before the checkpoint
    lines = journal_of(tmp_path / "other" / "run")
    assert lines[0]["resumed_from"] == str(source)
    assert lines[0]["step"] == 9


def test_two_trainers_of_a_process_cannot_work_in_one_run_folder(run_dir: Path) -> None:
    first, second = (TolariaTrainer(tiny_config(), run_dir=run_dir) for _ in range(2))

    async def go() -> None:
        await first.initialize()
        try:
            with pytest.raises(RunError, match=r"in use by another trainer of this process.*shutdown"):
                await second.initialize()
        finally:
            await first.shutdown()
        await second.initialize()
        await second.shutdown()

    asyncio.run(go())


def test_a_trainer_that_was_dropped_does_not_lock_its_run_folder(run_dir: Path) -> None:
    async def go() -> None:
        for _ in range(2):  # the cell of a notebook, again
            trainer = TolariaTrainer(tiny_config(optimization__max_epochs=1), run_dir=run_dir)
            await trainer.initialize()
            await trainer.train_epoch()
            del trainer
        trainer = TolariaTrainer(tiny_config(optimization__max_epochs=1), run_dir=run_dir)
        await trainer.initialize()
        await trainer.train()
        assert trainer.result is not None
        await trainer.shutdown()

    asyncio.run(go())


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").glob("step-*"))


def test_a_run_that_begins_anew_keeps_its_own_saves_and_not_those_of_before(run_dir: Path) -> None:
    train(tiny_config(), run_dir)
    assert names(run_dir) == ["step-00000012", "step-00000018"]
    train(tiny_config(checkpoint__auto_resume=False), run_dir, stop_at=7)
    assert names(run_dir) == ["step-00000006", "step-00000007"]
    assert (run_dir / "checkpoints" / "abandoned" / "step-00000018" / "manifest.json").exists()


def test_a_run_whose_checkpoints_are_all_damaged_begins_anew_and_can_be_resumed(
    straight: tuple[dict[str, Tensor], dict[str, Any]], run_dir: Path
) -> None:
    config = tiny_config(morphogenetic__blending_steps=4)
    train(config, run_dir, stop_at=17)
    for path in checkpoint.find_checkpoints(run_dir / "checkpoints"):
        (path / "state.json").write_text("{}")
    train(config, run_dir, stop_at=7)
    assert names(run_dir) == ["step-00000006", "step-00000007"]
    assert_same(train(config, run_dir)[0], straight[0])


def test_an_older_checkpoint_of_the_same_run_is_gone_back_to_when_asked_for(
    straight: tuple[dict[str, Tensor], dict[str, Any]], run_dir: Path
) -> None:
    train(tiny_config(morphogenetic__blending_steps=4), run_dir, stop_at=13)
    older = run_dir / "checkpoints" / "step-00000012"
    asked = tiny_config(morphogenetic__blending_steps=4, checkpoint__resume_from=str(older))
    finished, _ = train(asked, run_dir)
    assert_same(finished, straight[0])
    assert [line["resumed_from"] for line in journal_of(run_dir, "run_started")] == [None, str(older)]
    assert (run_dir / "checkpoints" / "abandoned" / "step-00000013").is_dir()


def test_runs_that_share_a_checkpoint_dir_do_not_take_each_others(tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    train(tiny_config(checkpoint__checkpoint_dir=shared), tmp_path / "tiny" / "first")
    second = tmp_path / "tiny" / "second"
    train(tiny_config(checkpoint__checkpoint_dir=shared, rng_seed=1), second)
    lines = journal_of(second)
    assert lines[0]["resumed_from"] is None
    assert sum(line["kind"] == "epoch" for line in lines) == 3


def test_fresh_does_not_resume(run_dir: Path) -> None:
    train(tiny_config(), run_dir, stop_at=13)
    _, growth = train(tiny_config(fresh=True), run_dir)
    assert [line["resumed_from"] for line in journal_of(run_dir, "run_started")] == [None]
    assert growth["num_germinated"] == 1


def notices(run_dir: Path) -> list[str]:
    return [line["message"] for line in journal_of(run_dir, "notice")]


def test_stopping_while_an_epoch_ends_or_before_the_first_step_saves_nothing_twice(
    straight: tuple[dict[str, Tensor], dict[str, Any]], run_dir: Path
) -> None:
    config = tiny_config(morphogenetic__blending_steps=4, checkpoint__max_checkpoints=1)

    def stop_on(kind: str) -> None:
        trainer = TolariaTrainer(
            config,
            run_dir=run_dir,
            listeners=[lambda event: trainer.request_stop("SIGTERM") if event.kind == kind else None],
        )

        async def go() -> None:
            try:
                await trainer.initialize()
                await trainer.train()
            finally:
                await trainer.shutdown()

        asyncio.run(go())

    stop_on("epoch")
    assert names(run_dir) == ["step-00000006"]
    saved = (run_dir / "checkpoints" / "step-00000006").stat()
    assert journal_of(run_dir)[-2]["kind"] == "checkpoint"
    for _ in range(2):
        stop_on("run_started")
        assert (run_dir / "checkpoints" / "step-00000006").stat() == saved
    assert_same(train(config, run_dir)[0], straight[0])


def test_a_save_that_was_killed_before_its_last_rename_is_resumed_from(
    straight: tuple[dict[str, Tensor], dict[str, Any]], run_dir: Path
) -> None:
    config = tiny_config(morphogenetic__blending_steps=4, checkpoint__max_checkpoints=1)
    train(config, run_dir, stop_at=9)
    path = run_dir / "checkpoints" / "step-00000009"
    path.rename(path.with_name(f".{path.name}.old"))  # the new one is not there yet, and nothing else
    finished, _ = train(config, run_dir)
    assert_same(finished, straight[0])
    assert notices(run_dir) == []
    assert [line["resumed_from"] for line in journal_of(run_dir, "run_started")] == [None, str(path)]


@pytest.mark.parametrize("how", ["removed", "other_dir"])
def test_a_run_whose_checkpoints_are_gone_says_that_it_starts_over(run_dir: Path, tmp_path: Path, how: str) -> None:
    config = tiny_config()
    train(config, run_dir, stop_at=9)
    if how == "removed":
        shutil.rmtree(run_dir / "checkpoints")
    else:
        config = tiny_config(checkpoint__checkpoint_dir=str(tmp_path / "elsewhere"))
    train(config, run_dir, stop_at=1)
    (notice,) = notices(run_dir)
    assert "checkpoints/step-00000009 was saved, but" in notice
    assert notice.endswith("holds no checkpoint; no checkpoint of this run loads: started over")


def test_a_new_run_and_one_that_does_not_resume_have_nothing_to_say(run_dir: Path) -> None:
    train(tiny_config(), run_dir, stop_at=7)
    train(tiny_config(checkpoint__auto_resume=False), run_dir, stop_at=7)
    assert notices(run_dir) == []


@pytest.mark.parametrize("name", ["step-00000009.bak", "step-00000006.backup", "best-mine", "step-latest"])
def test_what_others_keep_beside_checkpoints_is_left_alone_and_named_once(run_dir: Path, name: str) -> None:
    train(tiny_config(), run_dir, stop_at=9)
    folder = run_dir / "checkpoints"
    shutil.copytree(folder / "step-00000009", folder / name)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (folder / name).iterdir())
    train(tiny_config(), run_dir, stop_at=13)
    train(tiny_config(), run_dir)
    assert [own for own in names(run_dir) if own != name] == ["step-00000013", "step-00000018"]
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (folder / name).iterdir()) == before
    (notice,) = notices(run_dir)
    assert notice == f"{folder} also holds what is not a checkpoint of this run, left alone: {name}"


def test_a_run_that_went_to_another_device_says_so(run_dir: Path) -> None:
    train(tiny_config(), run_dir, stop_at=7)
    journal = run_dir / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"device": "cpu"', '"device": "mps"'))
    train(tiny_config(), run_dir)
    told = [
        event["message"] for event in map(json.loads, journal.read_text().splitlines()) if event["kind"] == "notice"
    ]
    assert told == [
        "resumes on cpu what trained on mps: numbers from here on depend on that; mixed_precision=null is on with CUDA "
        "alone"
    ]
