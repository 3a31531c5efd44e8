"""A folder of images with one subfolder a class, kept in memory or streamed.

    data_dir/train/<class>/*.jpg        and  data_dir/test/<class>/…  or  data_dir/val/<class>/…

With both, controller and judge share `val`; with `val` alone, it is the test set. Hidden files and folders, whose names
begin with a dot, are left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from esper.configs import DatasetConfig
from esper.configs.dataset import DATASETS
from esper.data.damage import describe_damage
from esper.data.fingerprint import Fingerprint
from esper.data.image_cache import load_images
from esper.data.images import Dataset, FileSet, ImageSet
from esper.data.listing import list_folder
from esper.errors import DataError

__all__ = ["fingerprint", "is_streamed", "load"]

MAX_MEMORY_BYTES = 8 * 2**30
"""With storage=auto, training images that need more than this in memory are streamed."""


def load(config: DatasetConfig, cache_dir: Path | None) -> Dataset:
    """List the images of a folder, and decode them unless they are streamed.

    Args:
        config: folder, image size and storage; `num_workers` threads decode large files.
        cache_dir: where decoded images are cached; None: nowhere.

    Raises:
        DataError: a folder is missing, a class has no images or is missing from a split, or an image cannot be used.
    """
    listing = list_folder(Path(config.data_dir).expanduser())
    found, notices = listing.fingerprint(), listing.notices()
    sets: Mapping[str, ImageSet | FileSet]
    if is_streamed(config, num_images=sum(map(len, listing.files["train"]))):
        sets = {split: _file_set(listing.folder / split, files, config) for split, files in listing.files.items()}
    else:
        sets, damaged = {}, dict[str, str]()
        for split, classes in listing.files.items():
            sets[split], others = _image_set(listing.folder / split, classes, config, cache_dir, found)
            damaged |= others
        if damaged:
            notices.append(describe_damage(damaged, folder=listing.folder))
    shapes = {split: images.shape for split, images in sets.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(
            f"dataset.data_dir={listing.folder}: splits differ in image size ({shapes}); set dataset.image_size"
        )
    return Dataset(
        train=sets["train"],
        test=sets[listing.test],
        class_names=tuple(listing.classes),
        val=sets.get("val") if listing.test == "test" else None,
        fingerprint=found,
        notices=tuple(notices),
    )


def fingerprint(config: DatasetConfig) -> Fingerprint:
    """What the folder holds now.

    Raises:
        DataError: as `load`, unless it takes decoding to notice.
    """
    return list_folder(Path(config.data_dir).expanduser()).fingerprint()


def is_streamed(config: DatasetConfig, *, num_images: int) -> bool:
    """Whether images are decoded each time they are needed, instead of being kept on the device."""
    if config.storage != "auto" or config.image_size is None:
        return config.storage == "stream"
    return DATASETS[config.name].is_streamed or 3 * config.image_size**2 * num_images > MAX_MEMORY_BYTES


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
    folder: Path,
    classes: list[list[os.DirEntry[str]]],
    config: DatasetConfig,
    cache_dir: Path | None,
    found: Fingerprint,
) -> tuple[ImageSet, dict[str, str]]:
    """The decoded images, and path and damage of the files that are damaged inside."""
    images, damaged = load_images(
        folder,
        [file for files in classes for file in files],
        image_size=config.image_size,
        num_threads=config.num_workers,
        cache_dir=cache_dir,
        contents=json.dumps(found.entry()),
        timeout_s=config.timeout_s,
    )
    return ImageSet(images, _labels(classes)), damaged


def _labels(classes: list[list[os.DirEntry[str]]]) -> torch.Tensor:
    return torch.arange(len(classes)).repeat_interleave(torch.tensor([len(files) for files in classes]))
