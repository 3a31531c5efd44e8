"""A folder of images with one subfolder a class, kept in memory or streamed.

    data_dir/train/<class>/*.jpg        and  data_dir/test/<class>/…  or  data_dir/val/<class>/…

With both, controller and judge share `val`; with `val` alone, it is the test set. Hidden files and folders, whose names
begin with a dot, are left out.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from esper.configs import DatasetConfig
from esper.data.images import Dataset, FileSet, ImageSet
from esper.errors import DataError
from esper.images.ahead import take
from esper.images.fingerprint import Fingerprint
from esper.images.folder import decode_folder
from esper.images.listing import Listing, list_folder
from esper.images.storage import is_streamed

__all__ = ["fingerprint", "load"]


def load(config: DatasetConfig, cache_dir: Path | None) -> Dataset:
    """List the images of a folder, and decode them unless they are streamed.

    Args:
        config: folder, image size and storage; `num_workers` threads decode large files.
        cache_dir: where decoded images are cached; None: nowhere.

    Raises:
        DataError: a folder is missing, a class has no images or is missing from a split, or an image cannot be used.
    """
    decoded = take(config, cache_dir)
    if decoded is None:
        listing = list_folder(Path(config.data_dir).expanduser())
        if is_streamed(config, num_images=sum(map(len, listing.files["train"]))):
            return _streamed(config, listing)
        decoded = decode_folder(config, listing, cache_dir)
    shapes = {split: images.shape[1:] for split, images in decoded.images.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(
            f"dataset.data_dir={decoded.folder}: splits differ in image size ({shapes}); set dataset.image_size"
        )
    sets = {
        split: ImageSet(torch.from_numpy(images), _labels(decoded.counts[split]))
        for split, images in decoded.images.items()
    }
    return Dataset(
        train=sets["train"],
        test=sets[decoded.test],
        class_names=tuple(decoded.classes),
        val=sets.get("val") if decoded.test == "test" else None,
        fingerprint=decoded.fingerprint,
        notices=tuple(decoded.notices),
    )


def fingerprint(config: DatasetConfig) -> Fingerprint:
    """What the folder holds now.

    Raises:
        DataError: as `load`, unless it takes decoding to notice.
    """
    return list_folder(Path(config.data_dir).expanduser()).fingerprint()


def _streamed(config: DatasetConfig, listing: Listing) -> Dataset:
    sets = {split: _file_set(listing.folder / split, files, config) for split, files in listing.files.items()}
    return Dataset(
        train=sets["train"],
        test=sets[listing.test],
        class_names=tuple(listing.classes),
        val=sets.get("val") if listing.test == "test" else None,
        fingerprint=listing.fingerprint(),
        notices=tuple(listing.notices()),
    )


def _file_set(folder: Path, classes: list[list[os.DirEntry[str]]], config: DatasetConfig) -> FileSet:
    assert config.image_size is not None  # checked with the configuration
    prefix = len(os.path.join(folder, ""))  # noqa: PTH118
    return FileSet(
        folder=folder,
        names=np.array([os.fsencode(file.path[prefix:]) for files in classes for file in files]),
        labels=_labels([len(files) for files in classes]),
        image_size=config.image_size,
        canvas_size=config.canvas_size or round(config.image_size * 8 / 7),
    )


def _labels(counts: list[int]) -> torch.Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
