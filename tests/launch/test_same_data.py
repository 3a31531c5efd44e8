"""A run whose data has changed is neither shown nor continued."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esper import fit
from esper.configs.compose import compose
from esper.configs.load import from_hydra
from esper.errors import RunError
from esper.sweep.launch import plan_submission
from esper.sweep.manifest import Member
from esper.tracking import read
from tests.forked import ESPER_TRAIN, run
from tests.launch.test_same_run import DEBUG, contents, set_status

SETTINGS = (
    *DEBUG,
    "dataset=imagefolder",
    "dataset.image_size=8",
    "dataset.num_workers=0",
    "dataset.num_examples=null",
    "dataset.batch_size=8",
)
STORAGES = ("memory", "stream")
Change = Callable[[Path], object]


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)


def write_images(data: Path, *, num: int = 20) -> Path:
    for split, n in (("train", num), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(n):
                paint(data / split / name / f"{i:02}.bmp", 100 * label + i)
    return data


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with data in `data`, and finished runs of two epochs in `memory` and `stream`."""
    folder = tmp_path_factory.mktemp("same_data")
    write_images(folder / "data")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for storage in STORAGES:
            fit(*SETTINGS, f"dataset.storage={storage}", run_dir=storage)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def again(storage: str = "stream", *more: str) -> None:
    outcome = fit(*SETTINGS, f"dataset.storage={storage}", *more, run_dir=storage)
    assert outcome.result is not None


def without_cache(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if not name.startswith("cache")}


def swap(data: Path) -> None:
    (data / "train" / "cat").rename(data / "aside")
    (data / "train" / "dog").rename(data / "train" / "cat")
    (data / "aside").rename(data / "train" / "dog")


def replace_in_place(data: Path) -> None:
    """With another image of the same size and modification time."""
    file = data / "train" / "cat" / "03.bmp"
    before = file.stat()
    paint(file, 999)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


def rename_class(data: Path) -> None:
    for split in ("train", "test"):
        (data / split / "cat").rename(data / split / "wolf")


CHANGES: dict[str, tuple[Change, str]] = {
    "swapped": (swap, "train/cat: other contents, train/dog: other contents;"),
    "added": (lambda data: paint(data / "train" / "cat" / "new.bmp", 1), "train/cat: 20 → 21 examples;"),
    "removed": (lambda data: (data / "train" / "dog" / "07.bmp").unlink(), "train/dog: 20 → 19 examples;"),
    "renamed": (
        lambda data: (data / "train" / "dog" / "07.bmp").rename(data / "train" / "dog" / "99.bmp"),
        "train/dog: other file names;",
    ),
    "in place": (replace_in_place, "train/cat: other contents;"),
    "class": (rename_class, "train/cat is gone, test/cat is gone, train/wolf is new, test/wolf is new;"),
    "validation set": (
        lambda data: shutil.copytree(data / "test", data / "val"),
        "val/cat is new, val/dog is new;",
    ),
}


@pytest.mark.parametrize(("storage", "status"), [("stream", "finished"), ("memory", "interrupted")])
@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_named_and_nothing_is_touched(here: Path, change: str, storage: str, status: str) -> None:
    if status != "finished":
        set_status(here / storage, status)
    apply, message = CHANGES[change]
    apply(here / "data")
    before = without_cache(here / storage)
    with pytest.raises(RunError) as caught:
        again(storage)
    assert str(caught.value).startswith(f"{here / storage} holds a run on other data: {message} restore the data")
    assert caught.value.exit_code == 2
    assert without_cache(here / storage) == before


@pytest.mark.long
def test_the_command_says_so_in_one_line_and_fresh_trains_anew(here: Path) -> None:
    swap(here / "data")
    command = (*SETTINGS, "dataset.storage=stream", "hydra.run.dir=stream")
    done = run(ESPER_TRAIN, *command, cwd=here)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "other data: train/cat: other contents" in done.stderr
    again("stream", "fresh=true")
    again("stream")


@pytest.mark.parametrize("storage", STORAGES)
def test_times_and_hidden_files_and_another_place_make_no_difference(here: Path, storage: str) -> None:
    for file in (here / "data").rglob("*.bmp"):
        os.utime(file, ns=(1, 1))
    (here / "data" / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    again(storage)
    (here / "data").rename(here / "disk")
    (here / "data").symlink_to(here / "disk")
    again(storage)
    set_status(here / storage, "interrupted")
    again(storage)


def test_a_folder_of_the_same_name_elsewhere_is_other_data(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = here / "elsewhere"
    write_images(elsewhere / "data", num=21)
    monkeypatch.chdir(elsewhere)
    with pytest.raises(RunError, match=r"train/cat: 20 → 21 examples, train/dog: 20 → 21 examples|dataset\.data_dir: "):
        fit(*SETTINGS, "dataset.storage=stream", run_dir=here / "stream")


def test_a_run_without_a_checkpoint_starts_over_on_the_new_data(here: Path) -> None:
    set_status(here / "stream", "failed")
    shutil.rmtree(here / "stream" / "checkpoints")
    swap(here / "data")
    again("stream")
    swap(here / "data")
    with pytest.raises(RunError, match="holds a run on other data"):
        again("stream")


def test_test_images_may_change_until_there_is_a_result(here: Path) -> None:
    set_status(here / "stream", "interrupted")
    paint(here / "data" / "test" / "cat" / "01.bmp", 77)
    again("stream")
    told = [event["message"] for event in read(here / "stream" / "journal.jsonl") if event["kind"] == "notice"]
    assert told[-1] == "the test data have changed since the run began: test/cat: other contents"
    again("stream")
    (here / "data" / "test" / "cat" / "02.bmp").unlink()
    with pytest.raises(RunError, match="other data: test/cat: 4 → 3 examples;"):
        again("stream")


@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_a_run_that_recorded_no_data_is_accepted_and_that_is_said(
    here: Path, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "stream" / "data.json").unlink()
    if status != "finished":
        set_status(here / "stream", status)
    swap(here / "data")
    again("stream")
    assert capsys.readouterr().out.count("whether the data has changed is not known: stream was begun by a ve") == 1


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 1}', '{"schema": 1, "parts": {"a": 3}, "test": 1}', "\x00"])
def test_a_record_that_is_damaged_is_an_error(here: Path, content: str) -> None:
    (here / "stream" / "data.json").write_text(content)
    with pytest.raises(RunError, match=r"data\.json is damaged: .+; remove it"):
        again("stream")


def test_checkpoints_elsewhere_know_their_data(here: Path) -> None:
    kept = "checkpoint.checkpoint_dir=kept"
    fit(*SETTINGS, "dataset.storage=stream", kept, run_dir="a/run")
    shutil.rmtree(here / "a")
    swap(here / "data")
    with pytest.raises(RunError, match="other data: train/cat: other contents"):
        fit(*SETTINGS, "dataset.storage=stream", kept, run_dir="a/run")
    assert not (here / "a").exists()


def test_an_arm_needs_the_data_of_its_grown_run(here: Path) -> None:
    arms = (
        *SETTINGS[:3],
        *SETTINGS[4:],
        "model=resnet_small",
        "morphogenetic=schedule",
        "optimization.warmup_epochs=0.1",
    )
    comparison = [setting for setting in arms if setting != "morphogenetic=off"]
    fit(*comparison, "dataset.storage=stream", "arm=grown")
    paint(here / "data" / "train" / "cat" / "new.bmp", 1)
    with pytest.raises(
        RunError, match=r"comparison\.arm=static_flops: its grown run, .*, had other data: train/cat: 20"
    ):
        fit(*comparison, "dataset.storage=stream", "arm=static_flops")


def test_finished_members_of_a_sweep_are_compared_before_any_is_submitted(here: Path) -> None:
    members = []
    for seed in (0, 1):
        settings = (*SETTINGS, "dataset.storage=stream", f"rng_seed={seed}")
        member = Member(sweep_dir=here, name=f"seed{seed}", overrides=settings, cwd=str(here), siblings={})
        members.append((member, from_hydra(compose(settings))))
    fit(*SETTINGS, "dataset.storage=stream", run_dir=here / "seed0")
    assert [member.name for member, _ in plan_submission(members).to_submit] == ["seed1"]
    swap(here / "data")
    with pytest.raises(RunError, match="seed0 holds a run on other data: train/cat: other contents"):
        plan_submission(members)
