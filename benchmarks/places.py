"""Files and folders on the command lines of the benchmarks: types for argparse, which refuse what cannot be used."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["image_folder", "new_file", "new_folder"]


def new_file(text: str) -> Path:
    """A file that will be written, in a folder that may not exist yet."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file")
    new_folder(str(path.parent))
    return path


def new_folder(text: str) -> Path:
    """A folder that exists or can be made."""
    path = Path(text)
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise argparse.ArgumentTypeError(f"{place} is a file; name a folder")
    return path


def image_folder(text: str) -> str:
    """A folder of images: train/, and test/ or val/, with a subfolder for each class."""
    for splits in (["train"], ["test", "val"]):
        if not any((Path(text) / split).is_dir() for split in splits):
            raise argparse.ArgumentTypeError(
                f"{text} has no folder {splits[0]}/ with a subfolder of images for each class"
            )
    return text
