from __future__ import annotations

from typing import Any

import pytest
import torch

from esper.configs import DatasetConfig
from esper.data import ImageSet, Preprocess, TrainLoader

SPLIT = ImageSet(
    torch.randint(0, 256, (50, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.arange(50),
)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)


def preparation(**changes: Any) -> Preprocess:
    settings = {"normalize": True, "channels_last": True} | changes
    return Preprocess(mean=MEAN, std=STD, device=torch.device("cpu"), **settings)


def loader(**changes: Any) -> TrainLoader:
    return TrainLoader(SPLIT, DatasetConfig(batch_size=8, **changes), rng_seed=0, prepare=preparation())


def test_an_epoch_is_a_permutation_without_the_last_incomplete_batch() -> None:
    batches = loader()
    labels = torch.cat([batches.batch(0, i)[1] for i in range(batches.num_batches)])
    assert batches.num_batches == 6
    assert labels.unique().numel() == 48
    assert not torch.equal(labels, labels.sort().values)


def test_batches_can_be_read_in_any_order() -> None:
    first, second = loader(), loader()
    wanted = [(2, 3), (0, 1), (2, 3), (1, 0)]
    a = [first.batch(epoch, index) for epoch, index in wanted]
    b = {key: second.batch(*key) for key in sorted(set(wanted))}
    for (images, labels), key in zip(a, wanted, strict=True):
        assert torch.equal(images, b[key][0])
        assert torch.equal(labels, b[key][1])


def test_epochs_differ_in_order_unless_shuffling_is_off() -> None:
    assert not torch.equal(loader().batch(0, 0)[1], loader().batch(1, 0)[1])
    plain = loader(shuffle=False)
    assert plain.batch(0, 0)[1].tolist() == plain.batch(1, 0)[1].tolist() == list(range(8))


def test_the_rows_of_all_ranks_make_up_the_whole_batch() -> None:
    config = DatasetConfig(batch_size=8)
    parts = [
        TrainLoader(SPLIT, config, rng_seed=0, prepare=preparation(), rows=rows) for rows in (slice(0, 3), slice(3, 8))
    ]
    shared = [part.batch(1, 2) for part in parts]
    images, labels = loader().batch(1, 2)
    assert [len(labels) for _, labels in shared] == [3, 5]
    assert torch.equal(torch.cat([images for images, _ in shared]), images)
    assert torch.equal(torch.cat([labels for _, labels in shared]), labels)
    assert torch.equal(next(parts[1].first_batches(1, 1)), next(loader().first_batches(1, 1)))


@pytest.mark.parametrize("normalize", [True, False])
def test_images_are_scaled_and_standardised(normalize: bool) -> None:
    (images, labels), *_ = preparation(normalize=normalize).batches(SPLIT, 50)
    expected = SPLIT.images.float() / 255
    if normalize:
        expected = (expected - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(images, expected)
    assert torch.equal(labels, SPLIT.labels)


def test_evaluation_batches_cover_every_image_once() -> None:
    sizes = [len(labels) for _, labels in preparation().batches(SPLIT, 20)]
    assert sizes == [20, 20, 10]


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_have_the_configured_memory_format(channels_last: bool) -> None:
    images, _ = next(preparation(channels_last=channels_last).batches(SPLIT, 4))
    assert images.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
