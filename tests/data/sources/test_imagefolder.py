from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from esper.configs import DatasetConfig
from esper.data import DataSplits, load_splits
from esper.errors import DataError
from esper.images.listing import find_images


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, n in (("train", 20), ("test", 6)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(n):
                paint(tmp_path / "images" / split / name / f"{i:02}.png", (100 * label, i, 7))
    return tmp_path / "images"


def load(folder: Path, **changes: Any) -> DataSplits:
    cache_dir = changes.pop("cache_dir", folder.parent / "cache")
    settings = {"name": "imagefolder", "data_dir": str(folder), "batch_size": 4, "val_split": 0.4} | changes
    return load_splits(DatasetConfig(**settings), rng_seed=0, cache_dir=cache_dir)


def test_subfolders_are_classes_and_images_are_rgb(folder: Path) -> None:
    splits = load(folder)
    assert splits.spec.output_names == ("cat", "dog")
    assert [len(s) for s in (splits.train, splits.controller, splits.judge, splits.test)] == [24, 8, 8, 12]
    assert torch.equal(splits.train.images[:, 0, 0, 0] // 100, splits.train.labels)
    assert (splits.train.images[:, 2] == 7).all()


def test_val_alone_is_the_test_set(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    assert len(load(folder).test) == 12


def test_controller_and_judge_share_val_if_there_is_a_test_folder(folder: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(4):
            paint(folder / "val" / name / f"{i}.png", (1, 2, 3))
    splits = load(folder)
    assert [len(s) for s in (splits.train, splits.controller, splits.judge, splits.test)] == [40, 4, 4, 12]
    assert (splits.judge.images[:, 1] == 2).all()


def test_a_validation_folder_that_is_too_small_is_not_mended_by_val_split(folder: Path) -> None:
    for name in ("cat", "dog"):
        paint(folder / "val" / name / "0.png", (1, 2, 3))
    with pytest.raises(DataError, match=r"controller split has 1 images, .*'cat'; use a larger val") as error:
        load(folder)
    assert "(now" not in str(error.value)


def test_a_test_folder_that_is_too_small_is_not_mended_by_val_split(folder: Path) -> None:
    for file in (folder / "test" / "cat").iterdir():
        file.unlink()
    paint(folder / "test" / "cat" / "0.png", (1, 2, 3))
    for file in (folder / "test" / "dog").iterdir():
        file.unlink()
    with pytest.raises(DataError) as error:
        load(folder)
    assert "val_split" not in str(error.value)


def test_a_second_load_reads_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(folder)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(load(folder).train.images, first.train.images)


@pytest.mark.parametrize("change", ["content", "added", "removed", "image_size"])
def test_changed_files_invalidate_the_cache(folder: Path, change: str) -> None:
    before = load(folder)
    file, changes = folder / "train" / "cat" / "00.png", {}
    if change == "content":
        paint(file, (0, 0, 200))
        os.utime(file, ns=(1, 1))
    elif change == "added":
        paint(file.with_name("new.png"), (0, 0, 200))
    elif change == "removed":
        file.unlink()
    else:
        changes = {"image_size": 4}
    after = load(folder, **changes)
    assert not (before.train.images.shape == after.train.images.shape and torch.equal(
        torch.cat([before.train.images, before.controller.images, before.judge.images]),
        torch.cat([after.train.images, after.controller.images, after.judge.images]),
    ))  # fmt: skip


def test_a_damaged_cache_is_decoded_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = load(folder)
    for file in (folder.parent / "cache").iterdir():
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    assert torch.equal(load(folder).train.images, first.train.images)
    assert "is damaged" in caplog.text


def test_a_cache_that_cannot_be_written_causes_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder.parent / "file").write_text("")
    assert len(load(folder, cache_dir=folder.parent / "file" / "cache").train) == 24
    assert "cannot cache decoded images" in caplog.text


def test_a_full_disk_causes_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))  # maximum size of files that this process writes
    try:
        splits = load(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, action)
    assert len(splits.train) == 24
    assert "cannot cache decoded images" in caplog.text
    assert list((folder.parent / "cache").iterdir()) == []


def test_images_are_resized_and_cropped_in_the_centre(folder: Path) -> None:
    stripes = np.zeros((8, 16, 3), dtype=np.uint8)
    stripes[:, 4:12] = 255
    Image.fromarray(stripes).save(folder / "train" / "cat" / "wide.png")
    splits = load(folder, image_size=8)
    images = torch.cat([splits.train.images, splits.controller.images, splits.judge.images])
    assert (images == 255).all(dim=(1, 2, 3)).any()


def test_images_in_subfolders_are_found_and_sorted_by_path_parts(tmp_path: Path) -> None:
    for name in ("b.png", "a-b/c.JPG", "a/z.webp", "a/deep/er.jpeg", ".hidden.png", "notes.txt", ".png"):
        (tmp_path / "cat" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cat" / name).write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").write_bytes(b"")
    (tmp_path / "cat" / "link").symlink_to(tmp_path / "elsewhere")
    (found,), unread, _ = find_images(tmp_path, ["cat"])
    names = [str(Path(entry.path).relative_to(tmp_path / "cat")) for entry in found]
    assert unread == {".txt": 1}
    assert names == ["a/deep/er.jpeg", "a/z.webp", "a-b/c.JPG", "b.png"]


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_hidden_files_and_folders_are_left_out(folder: Path, storage: str) -> None:
    settings = {"storage": storage, "image_size": 8, "num_workers": 0}
    before = load(folder, **settings)
    for name in ("._00.png", ".DS_Store", ".thumbnails/00.png", ".ipynb_checkpoints/00-checkpoint.png"):
        for hidden in (folder / "train" / "cat" / name, folder / "train" / name, folder / name):
            hidden.parent.mkdir(parents=True, exist_ok=True)
            hidden.write_bytes(b"not an image")
    after = load(folder, **settings)
    assert (after.spec.output_names, after.notices) == (("cat", "dog"), ())
    assert torch.equal(after.train.labels, before.train.labels)


def test_a_dataset_in_a_hidden_folder_is_read(folder: Path) -> None:
    moved = folder.rename(folder.with_name(".images"))
    assert len(load(moved).train) == 24


def test_a_hidden_wordnet_id_is_not_missing_from_imagenet(folder: Path) -> None:
    for split in ("train", "test"):
        for name, wnid in (("cat", "n00000001"), ("dog", "n00000002")):
            (folder / split / name).rename(folder / split / wnid)
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    assert load(folder, name="imagenet", image_size=8, num_workers=0).spec.output_names == ("n00000001", "n00000002")


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".gif", ".avif", ".jp2", ".tga"])
def test_what_pillow_reads_is_read(folder: Path, suffix: str) -> None:
    for i in range(4):
        paint(folder / "train" / "cat" / f"new{i}{suffix}", (0, 0, 200))
    splits = load(folder)
    assert len(splits.train) + len(splits.controller) + len(splits.judge) == 44
    assert splits.notices == ()


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_files_that_are_not_read_are_counted_in_one_line(folder: Path, storage: str) -> None:
    for name in ("cat/a.heic", "cat/deep/b.HEIC", "dog/labels.csv", "dog/README"):
        (folder / "train" / name).parent.mkdir(exist_ok=True)
        (folder / "train" / name).write_bytes(b"")
    (folder / "test" / "cat" / "c.heic").write_bytes(b"")
    (notice,) = load(folder, storage=storage, image_size=8, num_workers=0).notices
    assert notice == (
        f"dataset.data_dir={folder}: files not read, because of their suffixes: 5 (3 .heic, 1 without, 1 .csv); "
        "images among them must be converted"
    )


def test_a_class_without_readable_files_says_what_it_has(folder: Path) -> None:
    for split in ("train", "test"):
        (folder / split / "bird").mkdir()
        (folder / split / "bird" / "a.heic").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"bird: contains no images; files not read, because of their suffixes: 1 \(1 \.heic\); add"
    ):
        load(folder)


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_pipes_and_devices_and_folders_are_left_out_and_named(folder: Path, storage: str) -> None:
    os.mkfifo(folder / "train" / "cat" / "pipe.png")
    (folder / "train" / "dog" / "zero.png").symlink_to("/dev/zero")
    (folder / "test" / "dog" / "link.png").symlink_to(folder / "train")
    (folder / "train" / "dog" / "copy.png").symlink_to(folder / "train" / "dog" / "00.png")
    splits = load(folder, storage=storage, image_size=8, num_workers=0)
    assert len(splits.train) + len(splits.controller) + len(splits.judge) == 41
    assert splits.notices == (
        f"dataset.data_dir={folder}: left out, not regular files: 3 (train/cat/pipe.png, train/dog/zero.png, "
        "test/dog/link.png)",
    )


def test_an_image_replaced_in_place_is_not_taken_from_the_cache(folder: Path) -> None:
    for file in (folder / "train").rglob("*.png"):
        Image.new("RGB", (8, 8), (1, 2, 3)).save(file.with_suffix(".bmp"))
        file.unlink()
    load(folder)
    for file in (folder / "train").rglob("*.bmp"):
        before = file.stat()
        Image.new("RGB", (8, 8), (9, 9, 9)).save(file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (load(folder).train.images == 9).all()


def test_an_empty_file_is_found_before_training(folder: Path) -> None:
    (folder / "test" / "cat" / "03.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"03\.png: is empty; repair or remove it"):
        load(folder, storage="stream", image_size=8, num_workers=0)


def test_a_cache_of_version_0_1_0_is_not_shown(folder: Path) -> None:
    """Its key had no version of the decoder, whose pixels have changed since."""
    train = folder / "train"
    files = sorted(train.rglob("*.png"), key=lambda file: file.parts)
    entries = [(str(f.relative_to(train)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = hashlib.sha256(json.dumps([str(train.resolve()), None, entries]).encode()).hexdigest()[:24]
    stale = torch.full((40, 3, 8, 8), 99, dtype=torch.uint8)
    checksum = torch.frombuffer(bytearray(hashlib.sha256(stale.numpy().tobytes()).digest()), dtype=torch.uint8)
    (folder.parent / "cache").mkdir()
    save_file({"images": stale, "sha256": checksum}, folder.parent / "cache" / f"{key}.safetensors")
    assert not (load(folder).train.images == 99).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("size", r"odd.png: 9x8 pixels, but 00.png has 8x8; set dataset.image_size"),
        ("broken", r"odd.png: not a readable image"),
        ("chunk", r"odd.png: not a readable image \(broken PNG file"),
        ("dangling link", r"odd.png: not a readable image"),
        ("class", r"train/ and test/ have different classes \(bird is in only one of them\)"),
        ("empty class", r"bird: contains no images"),
        ("latin-1 class", r"the name of the class 'M\\udcfcnchen' is not in UTF-8; rename it"),
        ("no test", r"needs a folder test/ or val/ beside train/"),
        ("no train", r"needs a folder train/ with a subfolder for each class"),
        ("no class", r"needs a folder train/ with a subfolder for each class"),
        ("empty", r"contains no images"),
    ],
)
def test_an_error_says_why_a_folder_cannot_be_used(folder: Path, damage: str, message: str) -> None:
    odd = folder / "train" / "cat" / "odd.png"
    if damage == "size":
        paint(odd, (0, 0, 0), (9, 8))
    elif damage == "broken":
        odd.write_bytes(b"not an image")
    elif damage == "chunk":
        paint(odd, (0, 0, 0))
        content = odd.read_bytes()
        at = content.index(b"IDAT")
        odd.write_bytes(content[: at - 1] + b"\x03" + content[at:])  # the chunk ends early, the next has no name
    elif damage == "dangling link":
        odd.symlink_to("nowhere.png")
    elif damage == "class":
        (folder / "train" / "bird").mkdir()
    elif damage == "empty class":
        for split in ("train", "test"):
            (folder / split / "bird").mkdir()
    elif damage == "latin-1 class":
        for split in ("train", "test"):
            (folder / split / "cat").rename(folder / split / "M\udcfcnchen")
    elif damage == "no test":
        (folder / "test").rename(folder / "tests")
    elif damage == "no train":
        (folder / "train").rename(folder / "training")
    elif damage == "no class":
        (folder / "train").rename(folder / "training")
        (folder / "train").mkdir()
    else:
        for file in (folder / "test").rglob("*.png"):
            file.unlink()
    with pytest.raises(DataError, match=message):
        load(folder)
