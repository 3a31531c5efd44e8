"""A dataset split into training, controller, judge and test sets."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from esper.configs import DatasetConfig, torch_seed
from esper.configs.dataset import DATASETS
from esper.data.images import Dataset, FileSet, ImageSet, draw_stratified
from esper.data.sharing import loaded, on_device
from esper.data.spec import DataSpec
from esper.data.tokens import TokenSet
from esper.errors import DataError
from esper.images.fingerprint import Fingerprint

__all__ = ["DataSplits", "Split", "fingerprint", "load_splits"]

Split = ImageSet | FileSet | TokenSet


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSplits:
    """Disjoint splits of a dataset.

    Attributes:
        train: the network is trained on it.
        controller: for validation, scores and early stopping.
        judge: for verdicts on modules, and nothing else.
        test: read once, at the end.
        spec: inputs and outputs that the data ask for.
        held_out: what is in controller and judge: numbers of images or documents among those that the training and,
            unless the dataset has its own, the validation data is drawn from, ascending, on the CPU; else empty.
        train_indices: from `num_examples`, `val_split` and `split_seed`, which of these the training split would hold
            with other settings: int64, ascending.
        fingerprint: what the dataset holds.
        mean, std: of each channel of the training images (of files: of 1024 of them), in units of [0, 1]; else empty.
        notices: what the user should know about the files.
        noun: what is split: images, rows or documents.
        input_names, target_name: as those of `Dataset`.
    """

    train: Split
    controller: Split
    judge: Split
    test: Split
    spec: DataSpec
    held_out: Tensor
    train_indices: Callable[..., Tensor]
    fingerprint: Fingerprint
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    notices: tuple[str, ...] = ()
    noun: str = "images"
    input_names: tuple[str, ...] = ()
    target_name: str | None = None

    @property
    def example_noun(self) -> str:
        """What an example is, in the plural: documents are read in windows."""
        return "windows" if isinstance(self.train, TokenSet) else self.noun

    def to(self, device: torch.device) -> DataSplits:
        """Move images and tokens that are in memory to a device."""
        splits = {name: getattr(self, name) for name in ("train", "controller", "judge", "test")}
        if isinstance(self.train, TokenSet):
            tokens = self.train.tokens  # of all splits
            if not self.train.is_streamed:
                tokens = on_device(tokens, device)
            splits = {name: split.placed(tokens) for name, split in splits.items()}
        else:
            splits = {name: split.to(device) for name, split in splits.items()}
        return dataclasses.replace(self, **splits)


def load_splits(config: DatasetConfig, *, rng_seed: int, cache_dir: Path | None = None) -> DataSplits:
    """Load a dataset and split its training images, stratified by class, or its text, by document.

    A share `val_split` of them is held out, half for the controller and half for the judge; if the dataset has its own
    validation set, that is halved instead. The test set never depends on `rng_seed`.

    Args:
        config: which dataset, and how it is split.
        rng_seed: random seed of the split, unless `config` has another.
        cache_dir: where decoded image folders are cached; None: nowhere.

    Raises:
        DataError: it is missing or unreadable, a split would lack a class, or a batch is larger than the train split.
    """
    source = importlib.import_module(DATASETS[config.name].module)
    split_seed = rng_seed if config.split_seed is None else config.split_seed
    if DATASETS[config.name].is_text:
        splits: DataSplits = source.load(config, split_seed=split_seed, cache_dir=cache_dir)
        return splits
    return _split_images(config, loaded(source.load, config, cache_dir), split_seed=split_seed)


def _remedy(split: str, noun: str, config: DatasetConfig, *, has_validation: bool) -> str:
    """What to do if a split is too small."""
    if split == "test":
        return "use a larger test set, or where none is given, another dataset.test_split"
    if has_validation and split != "train":
        return (
            "use a larger validation set, of which the controller and the judge get half each, or none: "
            "dataset.val_split then holds out a share of the training set"
        )
    or_share = "" if has_validation else f", or another dataset.val_split (now {config.val_split:g})"
    return f"use more {noun} (dataset.num_examples){or_share}"


def _split_images(config: DatasetConfig, dataset: Dataset, *, split_seed: int) -> DataSplits:
    generator = torch.Generator().manual_seed(torch_seed(split_seed))
    labels = dataset.train.strata
    drawn, held_out = _use(labels, config.num_examples, generator), torch.empty(0, dtype=torch.int64)
    if dataset.val is None:
        drawn, held_out = _hold_out(drawn, labels, config.val_split, generator)
    train = dataset.train if len(drawn) == len(labels) else dataset.train[drawn]
    validation = dataset.train[held_out] if dataset.val is None else dataset.val
    controller, judge = draw_stratified(validation.strata, 0.5, generator)
    splits = {"train": train, "controller": validation[controller], "judge": validation[judge], "test": dataset.test}
    noun = "images" if len(train.shape) == 3 else "rows"
    for name, split in splits.items():
        count, label = torch.bincount(split.strata, minlength=max(1, len(dataset.class_names))).min(0)
        if len(split) < 2 or count == 0:
            of_class = f", {count} of them of class {dataset.class_names[label]!r}" if dataset.class_names else ""
            raise DataError(
                f"dataset {config.name}: the {name} split has {len(split)} {noun}{of_class}; "
                + _remedy(name, noun, config, has_validation=dataset.val is not None)
            )
    if config.batch_size > len(train):
        raise DataError(
            f"dataset.batch_size={config.batch_size}: the training split of {config.name} has {len(train)} {noun}; set "
            "it to at most that"
        )
    mean, std = _mean_and_std(
        train.images if isinstance(train, ImageSet) else train.sample(config.num_workers), normalize=config.normalize
    )
    return DataSplits(
        train=splits["train"],
        controller=splits["controller"],
        judge=splits["judge"],
        test=splits["test"],
        spec=DataSpec(
            inputs=train.shape,
            num_outputs=len(dataset.class_names) or train.labels[:1].numel(),
            output_names=dataset.class_names,
        ),
        mean=mean,
        std=std,
        held_out=held_out,
        train_indices=functools.partial(_train_indices, labels, has_validation=dataset.val is not None),
        fingerprint=dataset.fingerprint,
        notices=dataset.notices,
        noun=noun,
        input_names=dataset.input_names,
        target_name=dataset.target_name,
    )


def fingerprint(config: DatasetConfig) -> Fingerprint:
    """What a dataset holds now, without decoding or downloading anything.

    Raises:
        DataError: it is missing or unreadable.
    """
    found: Fingerprint = importlib.import_module(DATASETS[config.name].module).fingerprint(config)
    return found


def _train_indices(
    labels: Tensor, *, has_validation: bool, num_examples: int | None, val_split: float, split_seed: int
) -> Tensor:
    """See `DataSplits.train_indices`."""
    generator = torch.Generator().manual_seed(torch_seed(split_seed))
    train = _use(labels, num_examples, generator)
    return train if has_validation else _hold_out(train, labels, val_split, generator)[0]


def _use(labels: Tensor, num_examples: int | None, generator: torch.Generator) -> Tensor:
    """Indices of the images to use, ascending."""
    if num_examples is None or num_examples >= len(labels):
        return torch.arange(len(labels))
    return draw_stratified(labels, num_examples / len(labels), generator)[0]


def _hold_out(used: Tensor, labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of the training images and of those held out, each ascending."""
    drawn, rest = draw_stratified(labels[used], share, generator)
    return used[rest], used[drawn]


def _mean_and_std(images: Tensor, *, normalize: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel or column, in units of [0, 1].

    Of pixels, the deviation is at least 0.001. Floating-point values are divided by 255, since `Preprocess` divides
    them likewise; with `normalize=False`, its result is then the values themselves. A constant column keeps its scale.
    """
    if images.is_floating_point():
        points = images.double().movedim(1, -1).flatten(0, -2)
        if not normalize:
            return (0.0,) * points.shape[1], (1.0 / 255.0,) * points.shape[1]
        std = points.std(0, correction=0)
        std = std.where(std > 1e-6 * points.abs().amax(0), 1.0)  # of a constant, which may be another one in a test
        return tuple((points.mean(0) / 255.0).tolist()), tuple((std / 255.0).tolist())
    # From histograms: exact, and without a float copy of the images.
    values = torch.arange(256, dtype=torch.float64) / 255.0
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].reshape(-1).int(), minlength=256).double()
        mean = (counts @ values / counts.sum()).item()
        means.append(mean)
        stds.append(max(1e-3, (counts @ (values - mean) ** 2 / counts.sum()).sqrt().item()))
    return tuple(means), tuple(stds)
