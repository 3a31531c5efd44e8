"""CIFAR-10 and CIFAR-100, through torchvision's checksummed files.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from esper.data.splits import ImageSet, Source
from esper.errors import DataError

__all__ = ["load_cifar"]


def load_cifar(name: str, data_dir: Path) -> Source:
    """Load `cifar10` or `cifar100` from a folder, downloading the archive if it is missing.

    Raises:
        DataError: it is missing and cannot be downloaded, or the files are damaged.
    """
    dataset = CIFAR100 if name == "cifar100" else CIFAR10
    try:
        train, test = (_read(dataset, data_dir, train=train) for train in (True, False))
    except (OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise DataError(
            f"dataset {name}: not in {data_dir} and not to be downloaded, or damaged ({_short(error)}); put "
            f"{dataset.filename} there, or unpack it there to {dataset.base_folder}/, or set dataset.data_dir"
        ) from None
    return Source(train=train[0], test=test[0], class_names=train[1])


def _read(dataset: type[CIFAR10], data_dir: Path, *, train: bool) -> tuple[ImageSet, tuple[str, ...]]:
    try:
        found = dataset(str(data_dir), train=train, download=False)
    except RuntimeError:  # "not found or corrupted"
        found = dataset(str(data_dir), train=train, download=True)
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(found.targets, dtype=torch.int64)), tuple(found.classes)


def _short(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
