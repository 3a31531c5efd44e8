"""Image folders that a process decodes while the command imports torch."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from esper.configs import DatasetConfig
from esper.data import DataSplits, load_splits
from esper.errors import DataError
from esper.images import ahead, cache
from esper.images.ahead import decoding_ahead
from tests.data.photos import CLASSES, damage, write_photos


@pytest.fixture
def config(tmp_path: Path) -> DatasetConfig:
    photos = write_photos(tmp_path / "photos")
    damage(photos / f"train/{CLASSES[0]}/{CLASSES[0]}_004.JPEG")
    return DatasetConfig(name="imagefolder", data_dir=str(photos), image_size=16, batch_size=4, val_split=0.2)


def of_group(number: int) -> list[psutil.Process]:
    """The processes of a group that have not ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == number and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def load(config: DatasetConfig, place: Path) -> DataSplits:
    return load_splits(config, rng_seed=0, cache_dir=place)


@pytest.mark.parametrize("is_cached", [False, True])
def test_the_process_decodes_what_the_command_would(
    config: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cached: bool
) -> None:
    expected = load(config, tmp_path / "other")
    if is_cached:
        load(config, tmp_path / "cache")
    monkeypatch.setattr(cache, "decode_whole", lambda *_: pytest.fail("decoded in this process"))
    monkeypatch.setattr(cache, "_read", lambda *_: pytest.fail("not decoded ahead"))
    with decoding_ahead(config, tmp_path / "cache"):
        found = load(config, tmp_path / "cache")
    for name in ("train", "controller", "judge", "test"):
        images, labels = (getattr(getattr(found, name), key) for key in ("images", "labels"))
        assert torch.equal(images, getattr(expected, name).images)
        assert torch.equal(labels, getattr(expected, name).labels)
    assert found.fingerprint == expected.fingerprint
    assert found.spec == expected.spec
    assert found.notices == expected.notices
    assert len(found.notices) == 1


def test_what_cannot_be_cached_is_decoded_by_the_command_which_tells_of_it(
    config: DatasetConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = load(config, tmp_path / "other")
    (tmp_path / "cache").write_text("a file where the folder would be")
    with decoding_ahead(config, tmp_path / "cache"):
        found = load(config, tmp_path / "cache")
    for name in ("train", "controller", "judge", "test"):
        assert torch.equal(getattr(found, name).images, getattr(expected, name).images)
    assert found.notices == expected.notices
    told = [record.getMessage().partition(" in ")[0] for record in caplog.records]
    assert told == ["cannot cache decoded images"] * 2  # train and test


def test_a_file_that_cannot_be_decoded_is_told_as_without(config: DatasetConfig, tmp_path: Path) -> None:
    (Path(config.data_dir) / "train" / CLASSES[1] / "empty.jpg").write_bytes(b"\xff\xd8\xffnothing")
    with pytest.raises(DataError) as expected:
        load(config, tmp_path / "other")
    with decoding_ahead(config, tmp_path / "cache"), pytest.raises(DataError) as told:
        load(config, tmp_path / "cache")
    assert str(told.value) == str(expected.value)
    assert "empty.jpg: not a readable image" in str(told.value)


def test_what_is_decoded_ahead_is_of_the_same_settings_and_folder(config: DatasetConfig, tmp_path: Path) -> None:
    other = DatasetConfig(name="imagefolder", data_dir=config.data_dir, image_size=8, batch_size=4, val_split=0.2)
    with decoding_ahead(config, tmp_path / "cache"):
        assert ahead.take(other, tmp_path / "cache") is None
        assert ahead.take(config, tmp_path / "elsewhere") is None
        assert ahead.take(config, tmp_path / "cache") is not None


@pytest.mark.parametrize("changes", [{"storage": "stream"}, {"num_workers": 0}, {"name": "digits"}])
def test_nothing_is_decoded_ahead_that_will_not_be_in_memory(
    config: DatasetConfig, tmp_path: Path, changes: dict[str, object]
) -> None:
    for key, value in changes.items():
        setattr(config, key, value)
    with decoding_ahead(config, tmp_path / "cache"):
        assert ahead.take(config, tmp_path / "cache") is None


def test_a_run_that_ends_early_ends_the_process_and_leaves_nothing_half_written(
    config: DatasetConfig, tmp_path: Path
) -> None:
    with decoding_ahead(config, tmp_path / "cache"):
        assert ahead._reader is not None
        process = ahead._reader._process.pid
        os.killpg(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    while of_group(process):  # what it had forked dies a moment later
        time.sleep(0.01)
    assert not list((tmp_path / "cache").glob(".*"))


def test_paths_of_other_types_in_sys_path_are_left_out_as_by_imports(
    config: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [tmp_path, *sys.path])
    with decoding_ahead(config, tmp_path / "cache"):
        assert ahead.take(config, tmp_path / "cache") is not None


def test_modules_in_the_current_folder_are_not_imported_by_the_process(
    config: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with decoding_ahead(config, tmp_path / "cache"):
        assert ahead.take(config, tmp_path / "cache") is not None


_SILENT = "import os, time; os.write(1, {printed!r}); time.sleep({seconds}); print('{{}}')"


@pytest.mark.parametrize("printed", [b"", b"\0\0\1"])
def test_what_is_not_decoding_may_take_longer_than_the_time_limit(
    config: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: bytes
) -> None:
    monkeypatch.setattr(ahead, "_START", _SILENT.format(printed=printed, seconds=0.5))
    config.timeout_s = 0.1
    with decoding_ahead(config, tmp_path / "cache"):
        assert ahead._reader is not None
        assert ahead._reader._read() == b"{}\n"


def test_a_file_that_takes_longer_than_the_time_limit_ends_the_process(
    config: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ahead, "_START", _SILENT.format(printed=b"\0", seconds=600))
    config.timeout_s = 0.1
    with decoding_ahead(config, tmp_path / "cache"):
        assert ahead.take(config, tmp_path / "cache") is None
    assert "the process that decodes images ahead has failed" in caplog.text


def test_a_process_that_fails_is_told_of(
    config: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ahead, "_START", "raise SystemExit(3)")
    with decoding_ahead(config, tmp_path / "cache"):
        assert len(load(config, tmp_path / "cache").train) == 32
    assert "the process that decodes images ahead has failed" in caplog.text


def test_the_process_imports_no_torch() -> None:
    program = "import sys, esper.images.ahead_process; print(sorted({'torch', 'sklearn', 'mlflow'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
