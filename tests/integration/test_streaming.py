"""A training whose images are decoded while it goes on."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from esper import fit
from esper.configs import DatasetConfig, TolariaConfig
from esper.data import FileSet, load_splits
from esper.data.loader import epoch_order
from esper.errors import DataError
from esper.launch.dry_run import dry_run
from esper.tolaria.checkpoints.files import load
from esper.tracking import read
from tests.conftest import tiny_config
from tests.data.photos import CLASSES, damage, write_photos
from tests.tolaria.checkpoints.test_resume import assert_same, train
from tests.tolaria.growth.test_stack import stacking


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), num_train=60, num_val=6)


def config(photos: Path, **changes: Any) -> TolariaConfig:
    dataset = DatasetConfig(
        name="imagefolder", storage="stream", data_dir=str(photos), image_size=8, batch_size=16, num_workers=1
    )
    return tiny_config(dataset=dataset, **changes)


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_a_streamed_training_that_grows_is_interrupted_and_goes_on_gives_the_same_bits(
    photos: Path, tmp_path: Path, num_workers: int
) -> None:
    others = set(multiprocessing.active_children())
    whole, growth = train(config(photos, dataset__num_workers=0), tmp_path / "whole")
    assert growth["num_germinated"] == 1
    for stop_at in (4, 9):
        train(config(photos, dataset__num_workers=num_workers), tmp_path / "parts", stop_at=stop_at)
        assert json.loads((tmp_path / "parts" / "status.json").read_text())["status"] == "interrupted"
    resumed, resumed_growth = train(config(photos, dataset__num_workers=num_workers), tmp_path / "parts")
    assert resumed_growth == growth
    assert_same(resumed, whole)
    assert set(multiprocessing.active_children()) <= others


def test_a_streamed_training_that_copies_blocks_resumes_after_it(photos: Path, tmp_path: Path) -> None:
    settings = stacking(dataset=config(photos, dataset__num_workers=0).dataset)
    whole, growth = train(settings, tmp_path / "whole")
    assert growth["num_germinated"] == 2
    train(settings, tmp_path / "parts", stop_at=growth["recipe"][0].born_step + 1)
    resumed, resumed_growth = train(settings, tmp_path / "parts")
    assert resumed_growth == growth
    assert_same(resumed, whole)


@pytest.mark.long
def test_a_file_that_is_damaged_stops_the_run_in_one_line(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    cut(photos / "val" / CLASSES[0] / f"{CLASSES[0]}_003.JPEG")
    others = set(multiprocessing.active_children())
    with pytest.raises(DataError, match=rf"^[^\n]*{CLASSES[0]}_003.JPEG: not a readable image[^\n]*$"):
        train(config(photos, optimization__max_epochs=1, optimization__warmup_epochs=0.0), tmp_path / "run")
    assert set(multiprocessing.active_children()) <= others


def cut(file: Path) -> bytes:
    """Truncate a file; returns what it held."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    return content


@pytest.mark.parametrize("split", ["val", "train"])
def test_a_damaged_image_is_found_before_the_first_checkpoint_and_the_same_command_then_trains(
    tmp_path: Path, split: str
) -> None:
    photos = write_photos(tmp_path / "photos", num_train=60, num_val=6)
    settings = config(photos, dataset__num_workers=0)
    judge = load_splits(settings.dataset, rng_seed=settings.rng_seed).judge
    assert isinstance(judge, FileSet)
    file = photos / "val" / CLASSES[0] / f"{CLASSES[0]}_003.JPEG"
    if split == "train":
        file = Path(judge.paths(torch.tensor([2]))[0])
    content = cut(file)
    with pytest.raises(DataError, match=rf"{file.name}: not a readable image .*; repair or remove it"):
        train(settings, tmp_path / "run")
    assert [event for event in read(tmp_path / "run" / "journal.jsonl") if event["kind"] == "checkpoint"] == []
    file.write_bytes(content)
    train(settings, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("save_last", [True, False])
def test_a_test_image_that_is_damaged_meanwhile_costs_only_the_test(tmp_path: Path, save_last: bool) -> None:
    photos = write_photos(tmp_path / "photos", num_train=60, num_val=6)
    settings = config(
        photos,
        dataset__num_workers=0,
        checkpoint__save_last=save_last,
        morphogenetic__enable_tamiyo=False,
        optimization__ema_decay=0.5,
    )
    whole, _ = train(settings, tmp_path / "whole")
    run_dir, file = tmp_path / "run", photos / "val" / CLASSES[1] / f"{CLASSES[1]}_005.JPEG"
    train(settings, run_dir, stop_at=settings_steps(settings) + 1)
    content = cut(file)
    with pytest.raises(DataError, match=r"_005\.JPEG: not a readable image .* then only the test is repeated"):
        fit(config=settings, run_dir=run_dir)
    ended, expected = (json.loads((tmp_path / name / "status.json").read_text()) for name in ("run", "whole"))
    assert (ended["status"], ended["result"]["test_accuracy"]) == ("failed", None)
    assert ended["result"]["val_loss"] == expected["result"]["val_loss"]
    assert "The run failed: " in (run_dir / "report.html").read_text()
    file.write_bytes(content)
    outcome = fit(config=settings, run_dir=run_dir)
    assert outcome.result is not None
    assert outcome.result["test_loss"] == expected["result"]["test_loss"]
    steps = [event["step"] for event in read(run_dir / "journal.jsonl") if event["kind"] == "run_started"]
    assert steps[-1] == 3 * settings_steps(settings)
    saved = load(sorted((run_dir / "checkpoints").glob("step-*"))[-1])
    assert_same({**saved.model, **saved.optimizer}, whole)


def settings_steps(settings: TolariaConfig) -> int:
    return len(load_splits(settings.dataset, rng_seed=settings.rng_seed).train) // settings.dataset.batch_size


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.long)])
def test_files_that_are_damaged_inside_are_counted_in_the_first_epoch(tmp_path: Path, num_workers: int) -> None:
    photos = write_photos(tmp_path / "photos", num_train=60, num_val=6)
    settings = config(photos, dataset__num_workers=num_workers, optimization__max_epochs=2)
    splits, damaged = load_splits(settings.dataset, rng_seed=settings.rng_seed), []
    for split in (splits.train, splits.controller, splits.judge, splits.test):
        assert isinstance(split, FileSet)
        damaged += split.paths(torch.tensor([len(split) // 2]))
    assert isinstance(splits.train, FileSet)
    order = epoch_order(len(splits.train), epoch=0, rng_seed=settings.rng_seed)
    damaged = {*damaged, *splits.train.paths(order[-1:])}  # not in a batch of the first epoch
    for file in damaged:
        damage(Path(file))
    train(settings, tmp_path / "run")
    events = list(read(tmp_path / "run" / "journal.jsonl"))
    (told,) = [event for event in events if event["kind"] == "notice" and "damaged inside" in event["message"]]
    assert told["step"] == settings_steps(settings)
    assert f": JPEG files damaged inside, used as far as they can be decoded: {len(damaged)} (" in told["message"]
    assert "Corrupt JPEG data: premature end of data segment" in told["message"]


def test_damage_in_a_part_of_the_first_epoch_is_told_when_it_is_stopped(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", num_train=60, num_val=6)
    settings = config(photos, dataset__num_workers=0, optimization__max_epochs=2)
    train_split = load_splits(settings.dataset, rng_seed=settings.rng_seed).train
    assert isinstance(train_split, FileSet)
    order = epoch_order(len(train_split), epoch=0, rng_seed=settings.rng_seed)
    for file in train_split.paths(order[:3]):
        damage(Path(file))
    train(settings, tmp_path / "run", stop_at=1)
    told = [event["message"] for event in read(tmp_path / "run" / "journal.jsonl") if event["kind"] == "notice"]
    assert [message for message in told if "used as far as they can be decoded: 3 (" in message]


def test_normal_settings_stream_too(photos: Path, tmp_path: Path) -> None:
    settings = config(photos, morphogenetic__incubation="fit", morphogenetic__incubation_steps=2)
    tensors, growth = train(settings, tmp_path / "run")
    assert growth["num_germinated"] == 1
    assert all(bool(torch.isfinite(value.float()).all()) for value in tensors.values())


def test_files_that_are_not_read_are_told_by_the_run_and_by_a_dry_run(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", num_train=20, num_val=6)
    (photos / "train" / CLASSES[0] / "phone.heic").write_bytes(b"")
    settings = config(photos, dataset__num_workers=0, optimization__max_epochs=1, optimization__warmup_epochs=0.0)
    settings = dataclasses.replace(settings, dataset=dataclasses.replace(settings.dataset, storage="memory"))
    train(settings, tmp_path / "run")
    told = [event["message"] for event in read(tmp_path / "run" / "journal.jsonl") if event["kind"] == "notice"]
    assert [message for message in told if "1 (1 .heic)" in message] == [told[0]]
    assert [line for line in dry_run(settings, tmp_path / "dry").lines if "1 (1 .heic)" in line]
