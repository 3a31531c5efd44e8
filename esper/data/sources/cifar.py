"""CIFAR-10 and CIFAR-100, read by torchvision, which verifies their checksums.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from esper.configs import DatasetConfig
from esper.data.images import Dataset, ImageSet
from esper.errors import DataError
from esper.folders import left_as_it_was
from esper.images.fingerprint import Fingerprint
from esper.images.listing import is_special

__all__ = ["fingerprint", "load"]

_DATASETS = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def load(config: DatasetConfig, _cache_dir: Path | None) -> Dataset:
    """Load the dataset from `config.data_dir`; download it if it is missing.

    Raises:
        DataError: it is missing and cannot be downloaded, or the files are damaged.
    """
    cifar, data_dir = _DATASETS[config.name], Path(config.data_dir).expanduser()
    files = [cifar.filename, *(f"{cifar.base_folder}/{name}" for name, _ in [*cifar.train_list, *cifar.test_list])]
    if special := [name for name in files if is_special(data_dir / name)]:
        raise DataError(f"{data_dir / special[0]}: not a regular file; remove it, or set dataset.data_dir")
    try:
        with left_as_it_was(data_dir), _socket_timeout(config.timeout_s):
            train, test = (_read(cifar, data_dir, train=train) for train in (True, False))
        return Dataset(
            train=_images(train), test=_images(test), class_names=tuple(train.classes), fingerprint=fingerprint(config)
        )
    except (OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise DataError(
            f"dataset {config.name}: missing from {data_dir} and cannot be downloaded, or damaged ({reason}); put "
            f"{cifar.filename} there, or unpack it there to {cifar.base_folder}/, or set dataset.data_dir"
        ) from None


def fingerprint(config: DatasetConfig) -> Fingerprint:
    """The checksums that torchvision compares the files with before it reads them."""
    cifar = _DATASETS[config.name]
    checksums = json.dumps([cifar.train_list, cifar.test_list]).encode()
    return Fingerprint({config.name: (60_000, "", hashlib.blake2b(checksums, digest_size=8).hexdigest())})


def _read(cifar: type[CIFAR10], data_dir: Path, *, train: bool) -> CIFAR10:
    try:
        return cifar(str(data_dir), train=train, download=False)
    except RuntimeError:  # "not found or corrupted"
        return cifar(str(data_dir), train=train, download=True)


@contextlib.contextmanager
def _socket_timeout(timeout_s: float) -> Iterator[None]:
    """Context manager: a download ends that gets no data for so long, which torchvision does not ask for."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_s)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _images(split: CIFAR10) -> ImageSet:
    images = torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(split.targets, dtype=torch.int64))
