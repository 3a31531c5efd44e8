"""On a full disk a run ends with the clear message, and leaves nothing half written behind."""

from __future__ import annotations

import os
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from esper.configs import DatasetConfig
from esper.data import load_splits
from esper.errors import WriteError
from esper.files import write_atomically
from esper.images.ahead import decoding_ahead
from esper.tolaria.checkpoints.files import find_checkpoints, verify
from esper.tracking.journal import read
from tests.data.photos import write_photos
from tests.sweep.test_launch import finish, start

DEBUG = (
    "experiment=debug", "debug_mode=false", "morphogenetic=off", "tracking=none", "device=cpu",
    "optimization.max_epochs=2000",
)  # fmt: skip


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    with (folder / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize)


def hidden(folder: Path) -> list[str]:
    """Temporary files and checkpoints."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name != ".lock"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("logging.log_interval=1", "checkpoint.save_interval=2000"), "cannot write .*: No space left on device"),
        (("logging.log_interval=1000", "checkpoint.max_checkpoints=1000"), "cannot (save|write) .*[Nn]o space left"),
    ],
)
def test_a_run_that_fills_the_disk_says_so_and_leaves_nothing_half_written(
    disk: Path, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    code, _, err = finish(start(*DEBUG, *overrides, f"hydra.run.dir={disk / 'out'}", cwd=tmp_path))
    assert code == 1, err
    assert re.fullmatch(rf"error: {message}.*\n", err), err
    assert hidden(disk) == []
    assert next(read(disk / "out" / "journal.jsonl"))["kind"] == "run_started"
    for checkpoint in find_checkpoints(disk / "out" / "checkpoints", complete=False):
        verify(checkpoint)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_images_that_find_no_room_in_the_cache_are_decoded_again(
    disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_damaged: bool
) -> None:
    config = DatasetConfig(
        name="imagefolder", data_dir=str(write_photos(tmp_path / "photos")), image_size=16, batch_size=4, val_split=0.2
    )
    expected = load_splits(config, rng_seed=0, cache_dir=disk if is_damaged else tmp_path / "other")
    for file in disk.glob("*.npy"):
        with file.open("r+b") as opened:
            opened.seek(-1, os.SEEK_END)
            opened.write(b"?")
    fill(disk)
    with decoding_ahead(config, disk):
        found = load_splits(config, rng_seed=0, cache_dir=disk)
    assert torch.equal(found.test.images, expected.test.images)
    assert ("wrong checksum" in caplog.text, "cannot cache decoded images" in caplog.text) == (is_damaged, True)


@pytest.mark.parametrize("name", ["report.html", "status.json", "recipe.json", "config.yaml"])
def test_a_file_that_does_not_fit_keeps_its_old_content(disk: Path, name: str) -> None:
    (disk / name).write_text("old")
    fill(disk)
    with pytest.raises(WriteError, match=rf"cannot write {disk / name}: No space left on device"):
        write_atomically(disk / name, "x" * 10_000)
    assert (disk / name).read_text() == "old"
    assert hidden(disk) == []


def test_a_read_only_disk_is_one_clear_error(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(WriteError, match=r"cannot write .*: Read-only file system"):
        write_atomically(disk / "status.json", "{}")


def test_a_file_above_the_limit_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(WriteError, match=r"cannot write .*report\.html: File too large"):
            write_atomically(tmp_path / "report.html", "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
