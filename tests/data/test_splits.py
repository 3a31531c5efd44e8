from __future__ import annotations

import importlib
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from esper.configs import DatasetConfig
from esper.configs.compose import conf_folder
from esper.configs.dataset import DATASETS
from esper.data import DataSplits, load_splits
from esper.errors import DataError


def digits(**changes: Any) -> DataSplits:
    settings = {"name": "digits", "batch_size": 64, "val_split": 0.4} | changes
    rng_seed = settings.pop("rng_seed", 0)
    return load_splits(DatasetConfig(**settings), rng_seed=rng_seed)


def rows(images: Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_splits_are_disjoint_and_cover_the_dataset() -> None:
    splits = digits()
    parts = [splits.train, splits.controller, splits.judge, splits.test]
    assert [len(part) for part in parts] == [863, 287, 288, 359]
    everything = Counter(row for part in parts for row in rows(part.images))
    from sklearn.datasets import load_digits

    original = torch.from_numpy(load_digits().images * (255 / 16)).round().to(torch.uint8)[:, None]
    assert everything == Counter(rows(original))


def test_splits_are_stratified_by_class() -> None:
    splits = digits()
    for part, share in ((splits.train, 0.48), (splits.controller, 0.16), (splits.judge, 0.16), (splits.test, 0.2)):
        counts = torch.bincount(part.labels, minlength=10)
        expected = torch.tensor([178, 182, 177, 183, 181, 182, 181, 179, 174, 180]) * share
        assert (counts - expected).abs().max() <= 2


def test_the_seed_changes_the_held_out_images_but_not_the_test_set() -> None:
    first, again, other = digits(), digits(), digits(rng_seed=1)
    assert torch.equal(first.judge.images, again.judge.images)
    assert not torch.equal(first.judge.images, other.judge.images)
    assert torch.equal(first.test.images, other.test.images)


def test_num_examples_draws_a_stratified_subset_of_the_training_images() -> None:
    splits = digits(num_examples=200)
    assert sum(len(part) for part in (splits.train, splits.controller, splits.judge)) == 200
    assert torch.bincount(splits.train.labels, minlength=10).min() >= 10
    assert len(splits.test) == 359


def test_mean_and_std_are_those_of_the_training_split() -> None:
    splits = digits()
    pixels = splits.train.images.double() / 255
    assert splits.mean == pytest.approx([pixels.mean().item()])
    assert splits.std == pytest.approx([pixels.std(unbiased=False).item()])


def test_a_batch_larger_than_the_training_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"dataset.batch_size=900: the training split of digits has 863 images"):
        digits(batch_size=900)


def test_a_split_that_would_be_empty_is_refused() -> None:
    with pytest.raises(DataError, match=r"the controller split has \d images"):
        digits(val_split=0.001)


def test_an_error_names_the_class_that_a_split_would_lack() -> None:
    with pytest.raises(
        DataError, match=r"controller split has 2 images, 0 of them of class '0'; .*num_examples.*val_split \(now 0.1\)"
    ):
        digits(num_examples=40, val_split=0.1, batch_size=8)


def test_synthetic_images_are_the_same_every_time() -> None:
    config = DatasetConfig(name="synthetic", num_examples=100, image_size=8, batch_size=10, val_split=0.2)
    a, b = (load_splits(config, rng_seed=0) for _ in range(2))
    assert a.train.images.shape == (80, 3, 8, 8)
    assert torch.equal(a.train.images, b.train.images)


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_of_the_table_has_a_loader_and_a_group_option(name: str) -> None:
    assert callable(importlib.import_module(DATASETS[name].module).load)
    assert (conf_folder() / "dataset" / f"{name}.yaml").is_file()
