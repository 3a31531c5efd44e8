"""A training whose images are decoded while it goes on."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.configs import DatasetConfig, TolariaConfig
from esper.errors import DataError
from esper.launch.dry_run import dry_run
from esper.tracking import read
from tests.conftest import tiny_config
from tests.data.photos import CLASSES, write_photos
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
    (photos / "val" / CLASSES[0] / f"{CLASSES[0]}_003.JPEG").write_bytes(b"")
    others = set(multiprocessing.active_children())
    with pytest.raises(DataError, match=rf"^[^\n]*{CLASSES[0]}_003.JPEG: not a readable image[^\n]*$"):
        train(config(photos, optimization__max_epochs=1, optimization__warmup_epochs=0.0), tmp_path / "run")
    assert set(multiprocessing.active_children()) <= others


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
