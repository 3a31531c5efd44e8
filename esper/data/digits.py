"""Handwritten digits, 8×8 scans that come with scikit-learn: 1797 images, nothing to download.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits as _load_digits

from esper.data.splits import ImageSet, Source, stratified

__all__ = ["load_digits"]


def load_digits() -> Source:
    """The digits as grey images (N, 1, 8, 8); a fifth of each class, always the same, is the test set."""
    found = _load_digits()
    images = torch.from_numpy(found.images * (255.0 / 16.0)).round().to(torch.uint8)[:, None]
    everything = ImageSet(images, torch.from_numpy(found.target).long())
    test, train = stratified(everything.labels, 0.2, torch.Generator().manual_seed(0))
    return Source(train=everything[train], test=everything[test], class_names=tuple(map(str, range(10))))
