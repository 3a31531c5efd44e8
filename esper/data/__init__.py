"""Datasets, splits, loaders and augmentation."""

from __future__ import annotations

from esper.data.evaluation import evaluation_batches
from esper.data.images import FileSet, ImageSet
from esper.data.loader import Loader, Preprocess, TrainLoader
from esper.data.mix import Mixer
from esper.data.pool import DecodePool
from esper.data.spec import DataSpec
from esper.data.splits import DataSplits, Split, fingerprint, load_splits
from esper.data.stream import StreamLoader
from esper.data.token_loader import TokenLoader
from esper.data.tokens import TokenSet
from esper.images.fingerprint import Fingerprint

__all__ = [
    "DataSpec",
    "DataSplits",
    "DecodePool",
    "FileSet",
    "Fingerprint",
    "ImageSet",
    "Loader",
    "Mixer",
    "Preprocess",
    "Split",
    "StreamLoader",
    "TokenLoader",
    "TokenSet",
    "TrainLoader",
    "evaluation_batches",
    "fingerprint",
    "load_splits",
]
