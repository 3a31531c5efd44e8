"""Mixup, CutMix and random erasing: what they do to images and targets, and that the step alone decides it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from esper.configs import DatasetConfig
from esper.data.mix import Mixer, cutmix_area, erase
from tests.conftest import tiny_config
from tests.tolaria.checkpoints.test_resume import assert_same, train

CPU = torch.device("cpu")
INDEX = torch.arange(256)
LABELS = INDEX % 10
IMAGES = INDEX[:, None, None, None].float().expand(256, 3, 8, 8)  # each image has its own constant value


def mixed(*, epoch: int = 0, **alphas: float) -> tuple[Tensor, Tensor]:
    mixer = Mixer(DatasetConfig(**alphas), rng_seed=0, num_classes=10, device=CPU)
    return mixer(IMAGES, LABELS, INDEX, epoch=epoch)


def share_of_other(images: Tensor) -> Tensor:
    """How much of each pixel is the image before: (B, 3, H, W)."""
    other = IMAGES.roll(1, 0)
    return (images - IMAGES) / (other - IMAGES)


def test_mixup_mixes_images_and_targets_alike_with_shares_from_its_beta_distribution() -> None:
    images, targets = mixed(mixup_alpha=0.4)
    share = share_of_other(images)
    assert torch.allclose(share, share[:, :1, :1, :1].expand_as(share), atol=1e-4)
    share = share[:, 0, 0, 0]
    own, other = targets.gather(1, LABELS[:, None])[:, 0], targets.gather(1, LABELS.roll(1)[:, None])[:, 0]
    assert torch.allclose(other, share, atol=1e-4)
    assert torch.allclose(own, 1 - share, atol=1e-4)
    expected = torch.distributions.Beta(0.4, 0.4)
    assert abs(float(share.mean()) - 0.5) < 0.07
    assert abs(float(share.var()) - float(expected.variance)) < 0.03


def test_cutmix_takes_a_rectangle_and_its_share_of_the_target() -> None:
    images, targets = mixed(cutmix_alpha=1.0)
    share = share_of_other(images)[:, 0]
    assert torch.equal(share, share.round())
    rows, columns = share.amax(2), share.amax(1)
    assert torch.equal(share, rows[:, :, None] * columns[:, None, :])
    assert torch.allclose(targets.gather(1, LABELS.roll(1)[:, None])[:, 0], share.mean((1, 2)), atol=1e-6)
    assert torch.allclose(targets.sum(1), torch.ones(256))
    assert len(share.mean((1, 2)).unique()) > 10


def test_a_rectangle_is_as_in_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision.transforms.v2")
    for seed in range(20):
        torch.manual_seed(seed)
        cutmix = torchvision.CutMix(num_classes=10)
        image = torch.zeros(2, 3, 32, 24)
        params = cutmix.make_params([image])
        torch.manual_seed(seed)  # as it drew them
        lam = cutmix._dist.sample(())
        column, row = torch.randint(24, size=(1,)), torch.randint(32, size=(1,))
        area = cutmix_area(1 - lam.reshape(1), (row + 0.5) / 32, (column + 0.5) / 24, height=32, width=24)[0]
        x1, y1, x2, y2 = params["box"]
        found = area.nonzero()
        assert [*found.amin(0).tolist(), *(found.amax(0) + 1).tolist()] == [y1, x1, y2, x2]


def test_with_both_half_of_the_images_get_either() -> None:
    images, _ = mixed(mixup_alpha=1.0, cutmix_alpha=1.0)
    share = share_of_other(images)[:, 0]
    is_cut = (share == share.round()).all(2).all(1)
    assert 90 < int(is_cut.sum()) < 166


def test_draws_depend_on_seed_epoch_and_image_alone() -> None:
    again, elsewhere = mixed(cutmix_alpha=1.0), mixed(cutmix_alpha=1.0, epoch=1)
    first, _ = mixed(cutmix_alpha=1.0)
    assert torch.equal(first, again[0])
    assert not torch.equal(first, elsewhere[0])


def test_erasing_sets_a_rectangle_of_some_images_to_the_mean() -> None:
    images = torch.ones(512, 3, 32, 32)
    result = erase(images, torch.arange(512), epoch=3, rng_seed=1, probability=0.25)
    gone = (result == 0).all(1)
    assert torch.equal((result == 0).any(1), gone)
    assert torch.equal(gone, gone.any(2)[:, :, None] & gone.any(1)[:, None, :])
    share = gone.float().mean((1, 2))
    assert 90 < int((share > 0).sum()) < 166
    assert float(share[share > 0].min()) > 0.015
    assert float(share.max()) < 0.35


def test_nothing_is_read_from_the_device() -> None:
    with FakeTensorMode():  # reading one of its tensors raises
        epoch, index = torch.zeros((), dtype=torch.int64, device="cuda"), torch.arange(4, device="cuda")
        mixer = Mixer(DatasetConfig(), rng_seed=0, num_classes=3, device=torch.device("cuda"))
        mixer._mixup = mixer._cutmix = torch.zeros(4096, device="cuda")
        images = erase(torch.zeros(4, 3, 8, 8, device="cuda"), index, epoch=epoch, rng_seed=0, probability=0.5)
        _, targets = mixer(images, torch.zeros_like(index), index, epoch=epoch)
        assert targets.shape == (4, 3)


def test_a_run_that_mixes_and_erases_resumes_bit_identical(tmp_path: Path) -> None:
    config = tiny_config(dataset__mixup_alpha=0.2, dataset__cutmix_alpha=1.0, dataset__random_erasing=0.25)
    straight, _ = train(config, tmp_path / "straight")
    train(config, tmp_path / "stopped", stop_at=9)
    resumed, _ = train(config, tmp_path / "stopped")
    assert_same(straight, resumed)
