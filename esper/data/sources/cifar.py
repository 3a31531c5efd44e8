"""CIFAR-10 and CIFAR-100, read by torchvision, which verifies their checksums.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from esper.configs import DatasetConfig
from esper.data.images import Dataset, ImageSet
from esper.errors import DataError

__all__ = ["load"]


def load(config: DatasetConfig, _cache_dir: Path | None) -> Dataset:
    """Load the dataset from `config.data_dir`; download it if it is missing.

    Raises:
        DataError: it is missing and cannot be downloaded, or the files are damaged.
    """
    cifar = {"cifar10": CIFAR10, "cifar100": CIFAR100}[config.name]
    data_dir = Path(config.data_dir).expanduser()
    try:
        train, test = (_read(cifar, data_dir, train=train) for train in (True, False))
        return Dataset(train=_images(train), test=_images(test), class_names=tuple(train.classes))
    except (OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise DataError(
            f"dataset {config.name}: missing from {data_dir} and cannot be downloaded, or damaged ({reason}); put "
            f"{cifar.filename} there, or unpack it there to {cifar.base_folder}/, or set dataset.data_dir"
        ) from None


def _read(cifar: type[CIFAR10], data_dir: Path, *, train: bool) -> CIFAR10:
    try:
        return cifar(str(data_dir), train=train, download=False)
    except RuntimeError:  # "not found or corrupted"
        return cifar(str(data_dir), train=train, download=True)


def _images(split: CIFAR10) -> ImageSet:
    images = torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(split.targets, dtype=torch.int64))
