"""ImageNet (ILSVRC 2012): an image folder whose classes are named by WordNet IDs.

Source: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, arXiv:1409.0575.
"""

from __future__ import annotations

import re
from pathlib import Path

from esper.configs import DatasetConfig
from esper.data.images import Dataset
from esper.data.sources import imagefolder
from esper.data.sources.imagefolder import fingerprint
from esper.errors import DataError
from esper.images.listing import list_classes

__all__ = ["fingerprint", "load"]


def load(config: DatasetConfig, cache_dir: Path | None) -> Dataset:
    """Load the image folder; see `imagefolder.load`.

    Raises:
        DataError: a class is not named by a WordNet ID, or the folder cannot be used.
    """
    data_dir = Path(config.data_dir).expanduser()
    for name in list_classes(data_dir / "train"):
        if not re.fullmatch(r"n\d{8}", name):
            raise DataError(
                f"dataset.data_dir={data_dir}: train/{name} is no ImageNet class (n and eight digits); rename the "
                "folders, or use dataset=imagefolder"
            )
    return imagefolder.load(config, cache_dir)
