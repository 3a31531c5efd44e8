"""Handwritten digits: 1797 scans of 8×8 pixels that ship with scikit-learn.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits

from esper.configs import DatasetConfig
from esper.data.digests import fingerprint_tensors
from esper.data.images import Dataset, ImageSet, draw_stratified
from esper.images.fingerprint import Fingerprint

__all__ = ["fingerprint", "load"]


def load(_config: DatasetConfig, _cache_dir: Path | None) -> Dataset:
    """The digits as grey images (N, 1, 8, 8); a fixed fifth of each class is the test set."""
    digits = load_digits()
    images = torch.from_numpy(digits.images * (255.0 / 16.0)).round().to(torch.uint8)[:, None]
    everything = ImageSet(images, torch.from_numpy(digits.target).long())
    test, train = draw_stratified(everything.labels, 0.2, torch.Generator().manual_seed(0))
    return Dataset(
        train=everything[train],
        test=everything[test],
        class_names=tuple(map(str, range(10))),
        fingerprint=fingerprint_tensors({"digits": (everything.images, everything.labels)}),
    )


def fingerprint(config: DatasetConfig) -> Fingerprint:
    """Of the scans that this version of scikit-learn ships."""
    return load(config, None).fingerprint
