from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esper.configs import DatasetConfig
from esper.data import DataSplits, load_splits
from esper.errors import DataError


def digits(**changes: Any) -> DataSplits:
    settings = {"name": "digits", "batch_size": 64, "val_split": 0.4} | changes
    rng_seed = settings.pop("rng_seed", 0)
    return load_splits(DatasetConfig(**settings), rng_seed=rng_seed)


def rows(images: Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_the_splits_are_disjoint_and_together_the_whole_dataset() -> None:
    splits = digits()
    parts = [splits.train, splits.controller, splits.judge, splits.test]
    assert [len(part) for part in parts] == [863, 287, 288, 359]
    everything = Counter(row for part in parts for row in rows(part.images))
    from sklearn.datasets import load_digits

    original = torch.from_numpy(load_digits().images * (255 / 16)).round().to(torch.uint8)[:, None]
    assert everything == Counter(rows(original))


def test_every_split_has_its_share_of_every_class() -> None:
    splits = digits()
    for part, share in ((splits.train, 0.48), (splits.controller, 0.16), (splits.judge, 0.16), (splits.test, 0.2)):
        counts = torch.bincount(part.labels, minlength=10)
        expected = torch.tensor([178, 182, 177, 183, 181, 182, 181, 179, 174, 180]) * share
        assert (counts - expected).abs().max() <= 2


def test_the_seed_moves_the_held_out_images_and_never_the_test_set() -> None:
    first, again, other = digits(), digits(), digits(rng_seed=1)
    assert torch.equal(first.judge.images, again.judge.images)
    assert not torch.equal(first.judge.images, other.judge.images)
    assert torch.equal(first.test.images, other.test.images)


def test_num_examples_limits_the_training_images_evenly() -> None:
    splits = digits(num_examples=200)
    assert sum(len(part) for part in (splits.train, splits.controller, splits.judge)) == 200
    assert torch.bincount(splits.train.labels, minlength=10).min() >= 10
    assert len(splits.test) == 359


def test_mean_and_deviation_are_those_of_the_training_split() -> None:
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


def test_a_class_that_a_split_would_lack_is_named() -> None:
    with pytest.raises(
        DataError, match=r"controller split has 2 images, 0 of them of class '0'; .*num_examples.*val_split \(now 0.1\)"
    ):
        digits(num_examples=40, val_split=0.1, batch_size=8)


def test_synthetic_images_are_the_same_every_time() -> None:
    config = DatasetConfig(name="synthetic", num_examples=100, image_size=8, batch_size=10, val_split=0.2)
    a, b = (load_splits(config, rng_seed=0) for _ in range(2))
    assert a.train.images.shape == (80, 3, 8, 8)
    assert torch.equal(a.train.images, b.train.images)


def test_cifar_that_is_not_there_names_the_file_and_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # nobody listens: no network
    with pytest.raises(
        DataError, match=r"put cifar-10-python.tar.gz there, or unpack it there to cifar-10-batches-py/"
    ):
        load_splits(DatasetConfig(name="cifar10", data_dir=str(tmp_path)), rng_seed=0)
