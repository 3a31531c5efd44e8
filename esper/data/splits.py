"""Images, in memory or in files, and how they are split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from esper.configs import DatasetConfig
from esper.data.files import FileSet
from esper.errors import DataError

__all__ = ["DataSplits", "ImageSet", "Source", "load_splits", "stratified"]


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Labelled images: `images` uint8 (N, C, H, W), `labels` int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def __getitem__(self, index: Tensor) -> ImageSet:
        return ImageSet(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> ImageSet:
        """The same images on a device."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A dataset as it comes: training and test images, and held-out ones where it brings its own."""

    train: ImageSet | FileSet
    test: ImageSet | FileSet
    class_names: tuple[str, ...]
    held_out: ImageSet | FileSet | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSplits:
    """Disjoint splits of a dataset.

    Attributes:
        train: what weights are trained on.
        controller: for validation, scores and early stopping.
        judge: for verdicts on modules, and nothing else.
        test: read once, at the end.
        class_names: names by label.
        mean, std: of each channel of the training split (of files: of 1024 of its images), in units of [0, 1].
    """

    train: ImageSet | FileSet
    controller: ImageSet | FileSet
    judge: ImageSet | FileSet
    test: ImageSet | FileSet
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to(self, device: torch.device) -> DataSplits:
        """The same splits, with images that are in memory on a device."""
        return DataSplits(
            train=self.train.to(device),
            controller=self.controller.to(device),
            judge=self.judge.to(device),
            test=self.test.to(device),
            class_names=self.class_names,
            mean=self.mean,
            std=self.std,
        )


def load_splits(config: DatasetConfig, *, rng_seed: int, cache_dir: Path | None = None) -> DataSplits:
    """Load a dataset and split its training images, evenly over the classes.

    `val_split` of them are held out, half for the controller and half for the judge; a dataset that brings a held-out
    set beside its test set has that halved instead. The test set never depends on `rng_seed`.

    Args:
        config: which dataset, and how it is split.
        rng_seed: random seed of the split.
        cache_dir: where decoded image folders are kept; None: nowhere.

    Raises:
        DataError: it is missing or unreadable, a split would lack a class, or a batch is larger than the train split.
    """
    source = _load(config, cache_dir)
    generator = torch.Generator().manual_seed(rng_seed)
    train = source.train
    if config.num_examples is not None and config.num_examples < len(train):
        chosen, _ = stratified(train.labels, config.num_examples / len(train), generator)
        train = train[chosen]
    held_out = source.held_out
    if held_out is None:
        out, kept = stratified(train.labels, config.val_split, generator)
        train, held_out = train[kept], train[out]
    first, second = stratified(held_out.labels, 0.5, generator)
    splits = {"train": train, "controller": held_out[first], "judge": held_out[second], "test": source.test}
    for name, split in splits.items():
        count, label = torch.bincount(split.labels, minlength=len(source.class_names)).min(0)
        if len(split) < 2 or count == 0:
            raise DataError(
                f"dataset {config.name}: the {name} split has {len(split)} images, {count} of them of class "
                f"{source.class_names[label]!r}; use more images (dataset.num_examples), or another dataset.val_split "
                f"(now {config.val_split:g})"
            )
    if config.batch_size > len(train):
        raise DataError(
            f"dataset.batch_size={config.batch_size}: the training split of {config.name} has {len(train)} images; set "
            "it to at most that"
        )
    mean, std = _moments(train.images if isinstance(train, ImageSet) else train.sample(config.num_workers))
    return DataSplits(**splits, class_names=source.class_names, mean=mean, std=std)


def stratified(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a share of every class; returns the indices drawn and those left, each in ascending order.

    Odd examples are dealt out over the classes, so that the totals are right to within one.
    """
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    owed = 0.0
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero()[:, 0]
        owed += share * len(members)
        count = round(owed)
        owed -= count
        order = torch.randperm(len(members), generator=generator)
        drawn[members[order[:count]]] = True
    return drawn.nonzero()[:, 0], (~drawn).nonzero()[:, 0]


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # From histograms: exact, and without a float copy of the images.
    values = torch.arange(256, dtype=torch.float64) / 255.0
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].reshape(-1).int(), minlength=256).double()
        mean = (counts @ values / counts.sum()).item()
        means.append(mean)
        deviations.append(max(1e-3, (counts @ (values - mean) ** 2 / counts.sum()).sqrt().item()))
    return tuple(means), tuple(deviations)


def _load(config: DatasetConfig, cache_dir: Path | None) -> Source:
    # Imported here: each source needs another library.
    if config.name == "digits":
        from esper.data.digits import load_digits

        return load_digits()
    if config.name == "synthetic":
        from esper.data.synthetic import make_synthetic

        return make_synthetic(image_size=config.image_size or 16, num_examples=config.num_examples or 2048)
    if config.name in ("imagefolder", "imagenet"):
        from esper.data.imagefolder import load_imagefolder

        return load_imagefolder(config, cache_dir)
    from esper.data.cifar import load_cifar

    return load_cifar(config.name, Path(config.data_dir).expanduser())
