"""A folder of images with one subfolder a class, kept in memory or streamed.

    data_dir/train/<class>/*.jpg        and  data_dir/test/<class>/…  or  data_dir/val/<class>/…

With both, controller and judge share `val`; with `val` alone, it is the test set. Hidden files and folders, whose names
begin with a dot, are left out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from esper.configs import DatasetConfig
from esper.configs.dataset import DATASETS
from esper.data.image_cache import load_images
from esper.data.images import Dataset, FileSet, ImageSet
from esper.data.pixels import suffixes
from esper.errors import DataError

__all__ = ["find_images", "is_streamed", "list_classes", "load"]

MAX_MEMORY_BYTES = 8 * 2**30
"""With storage=auto, training images that need more than this in memory are streamed."""
_MAX_KINDS = 5
"""Suffixes that a notice names."""


def load(config: DatasetConfig, cache_dir: Path | None) -> Dataset:
    """List the images of a folder, and decode them unless they are streamed.

    Args:
        config: folder, image size and storage; `num_workers` threads decode large files.
        cache_dir: where decoded images are cached; None: nowhere.

    Raises:
        DataError: a folder is missing, a class has no images or is missing from a split, or an image cannot be used.
    """
    data_dir = Path(config.data_dir).expanduser()
    splits, classes = _layout(data_dir)
    files, unread = {}, Counter[str]()
    for split in splits:
        files[split], others = find_images(data_dir / split, classes)
        unread += others
    sets: Mapping[str, ImageSet | FileSet]
    if is_streamed(config, num_images=sum(map(len, files["train"]))):
        sets = {split: _file_set(data_dir / split, files[split], config) for split in splits}
    else:
        sets = {split: _image_set(data_dir / split, files[split], config, cache_dir) for split in splits}
    shapes = {split: images.shape for split, images in sets.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"dataset.data_dir={data_dir}: splits differ in image size ({shapes}); set dataset.image_size")
    return Dataset(
        train=sets["train"],
        test=sets["test" if "test" in sets else "val"],
        class_names=tuple(classes),
        val=sets.get("val") if "test" in sets else None,
        notices=(f"dataset.data_dir={data_dir}: {_described(unread)}; images among them must be converted",)
        if unread
        else (),
    )


def is_streamed(config: DatasetConfig, *, num_images: int) -> bool:
    """Whether images are decoded each time they are needed, instead of being kept on the device."""
    if config.storage != "auto" or config.image_size is None:
        return config.storage == "stream"
    return DATASETS[config.name].is_streamed or 3 * config.image_size**2 * num_images > MAX_MEMORY_BYTES


def list_classes(folder: Path) -> list[str]:
    """Names of the subfolders, sorted; empty if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in _visible(folder) if entry.is_dir())


def find_images(folder: Path, classes: Sequence[str]) -> tuple[list[list[os.DirEntry[str]]], Counter[str]]:
    """List the image files of each class, sorted; subfolders are searched, links to folders are not.

    Returns:
        The files, and how many others there are of each suffix.

    Raises:
        DataError: a class has no images.
    """
    found, unread = [], Counter[str]()
    for name in classes:
        files, others = [], Counter[str]()
        for entry in _walk(folder / name):
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
            if suffix in suffixes():
                files.append(entry)
            elif not entry.is_dir():
                others[suffix] += 1
        if not files:
            contained = f"; {_described(others)}" if others else ""
            raise DataError(f"{folder / name}: contains no images{contained}; add some, or remove it from every split")
        # By the parts of the path: `a/b` before `a-b`.
        found.append(sorted(files, key=lambda entry: entry.path.split(os.sep)))  # noqa: PTH206
        unread += others
    return found, unread


def _described(unread: Counter[str]) -> str:
    kinds = sorted(unread, key=lambda suffix: (-unread[suffix], suffix))
    counts = [f"{unread[suffix]} {suffix or 'without'}" for suffix in kinds[:_MAX_KINDS]]
    more = ", …" if len(kinds) > _MAX_KINDS else ""
    return f"files not read, because of their suffixes: {unread.total()} ({', '.join(counts)}{more})"


def _walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    for entry in _visible(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        else:
            yield entry


def _visible(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _layout(data_dir: Path) -> tuple[list[str], list[str]]:
    """Names of the splits that exist and of the classes, which must be the same in every split."""
    classes = list_classes(data_dir / "train")
    if not classes:
        raise DataError(f"dataset.data_dir={data_dir}: needs a folder train/ with a subfolder for each class")
    splits = [name for name in ("train", "val", "test") if (data_dir / name).is_dir()]
    if len(splits) == 1:
        raise DataError(f"dataset.data_dir={data_dir}: needs a folder test/ or val/ beside train/")
    for split in splits[1:]:
        if unmatched := sorted({*classes} ^ {*list_classes(data_dir / split)}):
            raise DataError(
                f"dataset.data_dir={data_dir}: train/ and {split}/ have different classes ({unmatched[0]} is in only "
                "one of them); add or remove that folder"
            )
    return splits, classes


def _file_set(folder: Path, classes: list[list[os.DirEntry[str]]], config: DatasetConfig) -> FileSet:
    assert config.image_size is not None  # checked with the configuration
    prefix = len(os.path.join(folder, ""))  # noqa: PTH118
    return FileSet(
        folder=folder,
        names=np.array([os.fsencode(file.path[prefix:]) for files in classes for file in files]),
        labels=_labels(classes),
        image_size=config.image_size,
        canvas_size=config.canvas_size or round(config.image_size * 8 / 7),
    )


def _image_set(
    folder: Path, classes: list[list[os.DirEntry[str]]], config: DatasetConfig, cache_dir: Path | None
) -> ImageSet:
    images = load_images(
        folder,
        [file for files in classes for file in files],
        image_size=config.image_size,
        num_threads=config.num_workers,
        cache_dir=cache_dir,
    )
    return ImageSet(images, _labels(classes))


def _labels(classes: list[list[os.DirEntry[str]]]) -> torch.Tensor:
    return torch.arange(len(classes)).repeat_interleave(torch.tensor([len(files) for files in classes]))
