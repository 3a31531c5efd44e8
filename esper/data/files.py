"""Image files: finding them, and sets of them that are decoded only when they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from esper.data.decode import Form, decode_chunk
from esper.errors import DataError

__all__ = ["FileSet", "classes_in", "find_images"]

_SAMPLE_SIZE = 1024


@dataclass(frozen=True, slots=True)
class FileSet:
    """Labelled image files.

    Attributes:
        folder: what the names begin at.
        names: names relative to it, as the file system encodes them, (N,).
        labels: int64 (N,), in the host's memory.
        image_size: height and width of what a network gets.
        canvas_size: side to which training images are decoded before the random crop, and the shorter side of the
            others before the central one.
    """

    folder: Path
    names: NDArray[np.bytes_]
    labels: Tensor
    image_size: int
    canvas_size: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> FileSet:
        return FileSet(self.folder, self.names[index.numpy()], self.labels[index], self.image_size, self.canvas_size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return 3, self.image_size, self.image_size

    @property
    def centre(self) -> Form:
        """How an image is decoded that is not augmented."""
        return Form(resize=self.canvas_size, crop=self.image_size)

    @property
    def squashed(self) -> Form:
        """How an image is decoded that is cropped on the device."""
        return Form(resize=self.canvas_size, crop=None)

    def to(self, _: torch.device) -> FileSet:
        """The same files: they are where they are."""
        return self

    def paths(self, index: Tensor) -> list[str]:
        """The files of some images."""
        return [os.path.join(self.folder, os.fsdecode(name)) for name in self.names[index.numpy()]]  # noqa: PTH118

    def sample(self, num_threads: int) -> Tensor:
        """1024 images, evenly spaced, or all there are: uint8 (N, 3, H, W)."""
        index = torch.linspace(0, len(self) - 1, min(len(self), _SAMPLE_SIZE), dtype=torch.float64).long()
        with ThreadPoolExecutor(max_workers=max(1, num_threads)) as pool:
            chunks = list(pool.map(lambda path: decode_chunk([path], self.centre)[0], self.paths(index)))
        return torch.cat(chunks).permute(0, 3, 1, 2)


def classes_in(folder: Path) -> list[str]:
    """Names of the subfolders, sorted; none where there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def find_images(folder: Path, classes: Sequence[str]) -> Iterator[list[os.DirEntry[str]]]:
    """Find the images of every class, also in folders inside it; links to folders are not followed.

    Returns:
        For each class its files, sorted.

    Raises:
        DataError: a class has no images.
    """
    for name in classes:
        # By the parts of the path: `a/b` before `a-b`.
        files = sorted(_walk(os.path.join(folder, name)), key=lambda entry: entry.path.split(os.sep))  # noqa: PTH118, PTH206
        if not files:
            raise DataError(
                f"{folder / name}: no images in it ({', '.join(IMG_EXTENSIONS)}); add some, or remove the folder from "
                "every split"
            )
        yield files


def _walk(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in IMG_EXTENSIONS:  # noqa: PTH122
                yield entry
