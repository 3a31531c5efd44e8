"""A run that goes on from a checkpoint of another run trains on no image that it holds out, and ends where it says."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from esper import fit
from esper.configs import DatasetConfig, TolariaConfig
from esper.configs.check import check
from esper.data import load_splits
from esper.errors import ConfigError, EsperError
from esper.tolaria.checkpoints.files import load
from esper.tolaria.checkpoints.origin import Origin, read_origin
from tests.conftest import journal_of, tiny_config
from tests.launch.test_same_data import write_images
from tests.tolaria.checkpoints.test_resume import train

PLAIN = {"morphogenetic__enable_tamiyo": False, "checkpoint__max_checkpoints": 9}
DIGITS = {"dataset__name": "digits", "dataset__image_size": None, "dataset__num_examples": 600}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three epochs of six steps each, with a checkpoint after each, and one after step 9."""
    torch.set_num_threads(1)
    run_dir = tmp_path_factory.mktemp("source") / "run"
    train(tiny_config(**PLAIN), run_dir, stop_at=9)
    train(tiny_config(**PLAIN), run_dir)
    return run_dir


def at(run_dir: Path, step: int) -> str:
    return str(run_dir / "checkpoints" / f"step-{step:08d}")


def going_on(checkpoint: str, **changes: Any) -> TolariaConfig:
    return tiny_config(**{**PLAIN, "checkpoint__resume_from": checkpoint, "optimization__max_epochs": 5, **changes})


def count_leaked(before: TolariaConfig, after: TolariaConfig) -> tuple[int, int]:
    """Held-out images of the second run that equal a training image of the first, and all that it holds out."""
    old, new = (load_splits(config.dataset, rng_seed=config.rng_seed) for config in (before, after))
    trained = {image.numpy().tobytes() for image in old.train.images}
    held_out = [image.numpy().tobytes() for split in (new.controller, new.judge) for image in split.images]
    return sum(image in trained for image in held_out), len(held_out)


@pytest.mark.parametrize(
    ("changes", "settings", "remedy"),
    [
        ({"rng_seed": 1}, r"dataset.split_seed 0 → 1", "dataset.split_seed=0"),
        ({"dataset__val_split": 0.5}, r"dataset.val_split 0.4 → 0.5", "dataset.val_split=0.4"),
        (
            {"rng_seed": 7, "dataset__val_split": 0.2},
            "dataset.split_seed 0 → 7, dataset.val_split 0.4 → 0.2",
            "dataset.split_seed=0 dat",
        ),
    ],
)
def test_images_that_were_trained_on_are_not_held_out(
    source: Path, tmp_path: Path, changes: dict[str, Any], settings: str, remedy: str
) -> None:
    config = going_on(at(source, 12), **changes)
    leaked, num_held_out = count_leaked(tiny_config(), config)
    assert leaked > 0
    message = rf"trained on {leaked} of the {num_held_out} images that are held out here \({settings}\); give {remedy}"
    with pytest.raises(ConfigError, match=message):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(("num_epochs", "is_told"), [(3, True), (4, False)])
def test_a_run_without_a_step_left_to_train_says_so(
    source: Path, tmp_path: Path, num_epochs: int, is_told: bool
) -> None:
    train(going_on(at(source, 18), optimization__max_epochs=num_epochs), tmp_path / "run")
    told = [event["message"] for event in journal_of(tmp_path / "run", "notice")]
    assert any("no step is left to train, as optimization.max_epochs=3 is done" in line for line in told) is is_told


def test_fewer_examples_draw_another_split(tmp_path: Path) -> None:
    train(tiny_config(**PLAIN, **DIGITS), tmp_path / "source", stop_at=11)
    checkpoint = sorted((tmp_path / "source" / "checkpoints").glob("step-*"))[-1]
    config = going_on(str(checkpoint), **(DIGITS | {"dataset__num_examples": 500}))
    leaked, num_held_out = count_leaked(tiny_config(**DIGITS), config)
    with pytest.raises(ConfigError, match=rf"{leaked} of the {num_held_out} images .*num_examples 600 → 500\); give d"):
        train(config, tmp_path / "run")


def test_fewer_held_out_images_are_some_of_those_before_and_the_epochs_count_on(source: Path, tmp_path: Path) -> None:
    config = going_on(at(source, 12), dataset__val_split=0.2)
    assert count_leaked(tiny_config(), config)[0] == 0
    train(config, tmp_path / "run")
    assert [event["epoch"] for event in journal_of(tmp_path / "run", "epoch")] == [3, 4, 5]
    assert journal_of(tmp_path / "run", "epoch")[-1]["step"] == 5 * 8


@pytest.mark.parametrize(("batch_size", "steps_per_epoch"), [(16, 12), (64, 3)])
def test_with_another_batch_size_it_goes_on_after_as_many_epochs(
    source: Path, tmp_path: Path, batch_size: int, steps_per_epoch: int
) -> None:
    changes = {"dataset__batch_size": batch_size, "logging__log_interval": 1}
    train(going_on(at(source, 12), **changes), tmp_path / "run")
    train(tiny_config(**PLAIN, **changes, optimization__max_epochs=5), tmp_path / "whole")
    here, whole = ({e["step"]: e["learning_rate"] for e in journal_of(tmp_path / n, "step")} for n in ("run", "whole"))
    assert min(here) == 2 * steps_per_epoch + 1
    assert here == {step: rate for step, rate in whole.items() if step in here}
    assert [event["step"] for event in journal_of(tmp_path / "run", "epoch")] == [
        epoch * steps_per_epoch for epoch in (3, 4, 5)
    ]
    (told,) = [event["message"] for event in journal_of(tmp_path / "run", "notice")]
    assert told.startswith(f"goes on after epoch 2, at step {2 * steps_per_epoch} (192 images in batches of 32 → 192")


def test_ages_of_averages_and_modules_move_with_the_step(tmp_path: Path) -> None:
    grown = {
        "checkpoint__max_checkpoints": 9,
        "morphogenetic__judged": False,
        "optimization__ema_decay": 0.9,
        "morphogenetic__blending_steps": 0,
    }
    train(tiny_config(**grown), tmp_path / "source")
    saved = load(Path(at(tmp_path / "source", 18)))
    (graft,) = saved.recipe
    config = tiny_config(
        **grown,
        checkpoint__resume_from=at(tmp_path / "source", 18),
        dataset__batch_size=16,
        optimization__max_epochs=4,
    )
    train(config, tmp_path / "run", stop_at=37)
    placed = load(Path(at(tmp_path / "run", 37)))
    assert placed.recipe[0].born_step == graft.born_step + 18
    assert placed.state["average"] == {name: born + 18 for name, born in saved.state["average"].items()}


@pytest.mark.parametrize(
    ("step", "changes", "message"),
    [
        (9, {"dataset__batch_size": 16}, "was saved after step 3 of an epoch, which has other steps here; take a"),
        (9, {"dataset__val_split": 0.2}, "192 images in batches of 32 → 256 in batches of 32.: was saved after step 3"),
        (18, {"optimization__max_epochs": 2}, "3 epochs are done, more than optimization.max_epochs=2; set more, or"),
        (18, {"optimization__max_macs": 5e7}, "MACs are spent, more than optimization.max_macs=5e[+]07; set more, or"),
        (
            12,
            {"dataset__num_examples": 400},
            "was trained on other data: stripes: 320 → 400 examples; restore that,",
        ),
        (12, {"optimization__optimizer": "adamw"}, "optimizer state differs: .*; give its run's settings"),
        (12, {"dataset__image_size": 12}, "was trained on other data: stripes: other contents; restore that, or take"),
    ],
)
def test_what_does_not_suit_is_refused(
    source: Path, tmp_path: Path, step: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        train(going_on(at(source, step), **changes), tmp_path / "run")
    assert str(caught.value).endswith(f"or take its weights alone: model.init_from={at(source, step)}")


def test_a_folder_that_is_no_checkpoint_is_refused(source: Path) -> None:
    with pytest.raises(ConfigError, match=rf"no manifest.json; give a checkpoint, such as {at(source, 18)}$"):
        check(going_on(str(source)))
    with pytest.raises(ConfigError, match="resume_from='': no such folder"):
        check(going_on(""))


def test_within_an_epoch_other_rates_are_fine(source: Path, tmp_path: Path) -> None:
    train(going_on(at(source, 9), optimization__learning_rate=0.01), tmp_path / "run")
    assert journal_of(tmp_path / "run", "run_ended")[0]["step"] == 30
    assert journal_of(tmp_path / "run", "notice") == []


def test_all_epochs_done_is_the_end(source: Path, tmp_path: Path) -> None:
    train(going_on(at(source, 18), optimization__max_epochs=3), tmp_path / "run")
    assert journal_of(tmp_path / "run", "run_ended")[0]["step"] == 18


def test_a_checkpoint_apart_from_its_run_needs_the_same_settings(source: Path, tmp_path: Path) -> None:
    apart = tmp_path / "apart" / "step-00000012"
    shutil.copytree(at(source, 12), apart)
    with pytest.raises(ConfigError, match=r"its settings differ, and which is not known, as .* has no config\.yaml"):
        train(going_on(str(apart)), tmp_path / "run")
    train(tiny_config(**PLAIN, checkpoint__resume_from=str(apart)), tmp_path / "other")
    assert journal_of(tmp_path / "other", "run_started")[0]["step"] == 12


def test_a_checkpoint_of_a_run_that_recorded_no_data_says_so(source: Path, tmp_path: Path) -> None:
    old = shutil.copytree(source, tmp_path / "old")
    (old / "data.json").unlink()
    train(going_on(at(old, 12)), tmp_path / "run")
    (told,) = [event["message"] for event in journal_of(tmp_path / "run", "notice")]
    assert "was trained on the same data is not known" in told
    with pytest.raises(ConfigError, match="images that are held out here"):
        train(going_on(at(old, 12), rng_seed=1), tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("config.yaml", "config.yaml is not the configuration of a run; the run's own command rebuilds it"),
        ("data.json", "data.json is damaged: .*; remove it, and the data is not compared"),
    ],
)
@pytest.mark.parametrize("setting", ["checkpoint__resume_from", "model__init_from"])
def test_what_a_damaged_file_would_tell_of_the_earlier_training_is_not_taken_for_unknown(
    source: Path, tmp_path: Path, name: str, told: str, setting: str
) -> None:
    old = shutil.copytree(source, tmp_path / "old")
    (old / name).write_text("[")
    with pytest.raises(ConfigError, match=rf"{setting.replace('__', '.')}=\S+: \S+/{told}"):
        train(tiny_config(**PLAIN, optimization__max_epochs=5, **{setting: at(old, 12)}), tmp_path / "run")


@pytest.mark.parametrize("setting", ["checkpoint__resume_from", "model__init_from"])
def test_a_checkpoint_that_does_not_load_is_refused_with_one_that_does(
    source: Path, tmp_path: Path, setting: str
) -> None:
    old = shutil.copytree(source, tmp_path / "old")
    for step in (12, 18):
        (old / "checkpoints" / f"step-{step:08d}" / "state.json").write_text("{}")
    with pytest.raises(EsperError, match=rf"step-00000012/state\.json is damaged: .*; give {at(old, 9)}"):
        train(tiny_config(**PLAIN, optimization__max_epochs=5, **{setting: at(old, 12)}), tmp_path / "run")


def test_a_validation_set_of_its_own_is_never_trained_on(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    shutil.copytree(data / "test", data / "val")
    config = tiny_config(**PLAIN, optimization__max_epochs=1, optimization__warmup_epochs=0.0)
    config.dataset = DatasetConfig(name="imagefolder", data_dir=str(data), batch_size=8)
    train(config, tmp_path / "source")
    origin = read_origin(tmp_path / "source")
    assert origin is not None
    splits = load_splits(config.dataset, rng_seed=5)
    assert origin.num_leaked(splits) == 0
    assert len(origin.train_indices(splits)) == 40


def test_the_command_refuses_with_2_and_leaves_nothing_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="images that are held out here") as caught:
        fit(config=going_on(at(source, 12), rng_seed=1))
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"dataset__val_split": 0.2}, None),
        ({"rng_seed": 1, "dataset__split_seed": 0}, None),
        (
            {"rng_seed": 1},
            r"was trained on \d+ of the 128 images that are held out here .dataset.split_seed 0 → 1; the same split: d",
        ),
        (
            {"dataset__num_examples": 400},
            r"its data was other .stripes: 320 → 400 examples., with images perhaps that are",
        ),
    ],
)
def test_a_start_from_a_network_warns_of_images_that_it_was_trained_on(
    source: Path, tmp_path: Path, changes: dict[str, Any], told: str | None
) -> None:
    config = tiny_config(
        **PLAIN, **changes, model__init_from=str(source), optimization__max_epochs=1, optimization__warmup_epochs=0.1
    )
    train(config, tmp_path / "run")
    notices = [event for event in journal_of(tmp_path / "run", "notice") if event["level"] == "WARNING"]
    warnings = [event["message"] for event in notices if event["message"].startswith("model.init_from=")]
    assert len(warnings) == (told is not None)
    assert all(re.search(told or "", warning) for warning in warnings)


def test_text_counts_documents_and_other_splits_of_it_are_other_data(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text(f"{i:02} " * 100)
    text = DatasetConfig(name="text", data_dir=str(tmp_path), context=16, batch_size=4, val_split=0.3)
    splits = load_splits(text, rng_seed=0)
    settings = {"dataset.split_seed": 0, "dataset.val_split": 0.3, "dataset.num_examples": None}
    origin = Origin(
        dataset="text",
        batch_size=4,
        epoch={"dataset.context": 16, "dataset.epoch_windows": None},
        split=settings,
        text={"dataset.document_separator": "<|endoftext|>", "dataset.split_by": "document", "dataset.test_split": 0.1},
        data=splits.fingerprint,
    )
    assert origin.changed_data(splits, text) == ""
    assert origin.num_leaked(splits) == 0
    assert dataclasses.replace(origin, split=settings | {"dataset.split_seed": 1}).num_leaked(splits) > 0
    other = dataclasses.replace(text, test_split=0.2)
    assert origin.changed_data(splits, other) == "dataset.test_split 0.1 → 0.2"
    assert origin.steps_in_epoch(splits, splits.noun) == (
        "26 documents in batches of 4, dataset.context=16, dataset.epoch_windows=null"
    )
