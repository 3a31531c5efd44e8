"""Datasets, splits, loaders and augmentation."""

from __future__ import annotations

from esper.data.augment import augment
from esper.data.loader import Preparation, TrainLoader
from esper.data.splits import DataSplits, ImageSet, load_splits

__all__ = ["DataSplits", "ImageSet", "Preparation", "TrainLoader", "augment", "load_splits"]
