"""Labelled images, in memory or in files, and a dataset before it is split."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper import turns
from esper.data.sharing import on_device
from esper.images.decode import Resize, decode_chunk
from esper.images.fingerprint import Fingerprint

__all__ = ["Dataset", "FileSet", "ImageSet", "draw_stratified"]

_SAMPLE_SIZE = 1024


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Labelled examples in memory.

    Attributes:
        stored: images, uint8 or float32 (M, C, H, W), or rows, float32 (M, D); where several runs share a process, the
            examples of all splits, which are then on the device once.
        labels: classes, int64 (N,), or numbers, float32 (N,) or (N, D).
        places: where the examples are in `stored`, int64 (N,); None: they are all, in this order.
    """

    stored: Tensor
    labels: Tensor
    places: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> ImageSet:
        index = index.to(self.labels.device)
        labels = self.labels[index]
        if turns.current() is None:
            return ImageSet(self.at(index), labels)
        return ImageSet(self.stored, labels, index if self.places is None else self.places[index])

    @property
    def images(self) -> Tensor:
        """The examples, (N, C, H, W) or (N, D): a copy, if others are stored with them."""
        return self.at(slice(None))

    def at(self, index: Tensor | slice) -> Tensor:
        """Some of the examples."""
        return self.stored[index if self.places is None else self.places[index]]

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image, (D,) of a row."""
        return tuple(self.stored.shape[1:])

    @property
    def strata(self) -> Tensor:
        """The classes; where there are none, all examples are of one: int64 (N,)."""
        return torch.zeros(len(self), dtype=torch.int64) if self.labels.is_floating_point() else self.labels

    def to(self, device: torch.device) -> ImageSet:
        """Move the images to a device."""
        places = self.places if self.places is None else self.places.to(device)
        return ImageSet(on_device(self.stored, device), self.labels.to(device), places)


@dataclass(frozen=True, slots=True)
class FileSet:
    """Labelled image files, decoded when they are needed.

    Attributes:
        folder: parent of all files.
        names: paths relative to `folder`, in the file system's encoding, (N,).
        labels: int64 (N,), on the CPU.
        image_size: height and width of the network's input.
        canvas_size: side to which training images are resized before the random crop; of other images, the length of
            the shorter side before the centre crop.
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
    def strata(self) -> Tensor:
        """The classes, int64 (N,)."""
        return self.labels

    @property
    def centre_crop(self) -> Resize:
        """How images are decoded without augmentation."""
        return Resize(side=self.canvas_size, crop=self.image_size)

    @property
    def squashed(self) -> Resize:
        """How images are decoded that are cropped at random on the device."""
        return Resize(side=self.canvas_size, crop=None)

    def to(self, _: torch.device) -> FileSet:
        """Return itself; `ImageSet` moves."""
        return self

    def paths(self, index: Tensor) -> list[str]:
        """Paths of the images with these indices."""
        return [os.path.join(self.folder, os.fsdecode(name)) for name in self.names[index.numpy()]]  # noqa: PTH118

    def sample(self, num_threads: int) -> Tensor:
        """Decode 1024 evenly spaced images, or all if there are fewer: uint8 (N, 3, H, W)."""
        index = torch.linspace(0, len(self) - 1, min(len(self), _SAMPLE_SIZE), dtype=torch.float64).long()
        with ThreadPoolExecutor(max_workers=max(1, num_threads)) as pool:
            chunks = list(pool.map(lambda path: decode_chunk([path], self.centre_crop).images, self.paths(index)))
        return torch.from_numpy(np.concatenate(chunks)).permute(0, 3, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A dataset before it is split: training and test images, a validation set if it has its own, what to tell.

    Of a table, `input_names` are its columns in the order of the inputs, and `target_name` is the one to predict.
    """

    train: ImageSet | FileSet
    test: ImageSet | FileSet
    class_names: tuple[str, ...]
    fingerprint: Fingerprint
    val: ImageSet | FileSet | None = None
    notices: tuple[str, ...] = ()
    input_names: tuple[str, ...] = ()
    target_name: str | None = None


def draw_stratified(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a share of each class at random; returns the indices drawn and the others, each in ascending order.

    Rounding is carried over from class to class, so the total drawn is exact to within one.
    """
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    remainder = 0.0
    for label in range(int(labels.max()) + 1 if len(labels) else 0):
        members = (labels == label).nonzero()[:, 0]
        remainder += share * len(members)
        count = round(remainder)
        remainder -= count
        order = torch.randperm(len(members), generator=generator)
        drawn[members[order[:count]]] = True
    return drawn.nonzero()[:, 0], (~drawn).nonzero()[:, 0]
