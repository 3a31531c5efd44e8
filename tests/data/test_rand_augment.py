"""RandAugment: each operation as torchvision's, drawn by seed, epoch and image alone, in captured steps and resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from esper.data.rand_augment import OPERATIONS, apply_operations, rand_augment
from tests.conftest import tiny_config
from tests.tolaria.checkpoints.test_resume import assert_same, train


def pictures(channels: int, *, height: int = 32, width: int = 24) -> torch.Tensor:
    """Smooth images with noise, of low contrast so that stretching shows: uint8 (8, C, H, W)."""
    generator = torch.Generator().manual_seed(channels)
    coarse = torch.rand(8, channels, 4, 4, generator=generator) * 180 + 20
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + 8 * torch.rand(smooth.shape, generator=generator)).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvisions_within_a_grey_level(name: str, channels: int) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    theirs = v2.RandAugment()
    images = pictures(channels)
    number = torch.full((8,), OPERATIONS.index(name))
    for magnitude in (0, 4, 9, 17, 30):
        levels, is_signed = theirs._AUGMENTATION_SPACE[name]
        magnitudes = levels(31, *images.shape[2:])
        for sign in (-1, 1) if is_signed else (1,):
            level = 0.0 if magnitudes is None else float(magnitudes[magnitude]) * sign
            expected = theirs._apply_image_or_video_transform(images, name, level, "nearest", theirs._fill)
            result = apply_operations(images, number, torch.full((8,), sign), magnitude=magnitude)
            off = (result.int() - expected.int()).abs() > 1
            # A warp may take the neighbour where a source lies half-way between two pixels.
            limit = 0.01 if name.startswith(("Shear", "Rotate")) else 0.0
            assert float(off.float().mean()) <= limit, (magnitude, sign)


def test_each_image_gets_its_own_operation_whatever_the_others_get() -> None:
    images = pictures(3).repeat(4, 1, 1, 1)
    operation = torch.arange(32) % len(OPERATIONS)
    sign = torch.where(torch.arange(32) % 3 == 0, -1, 1)
    together = apply_operations(images, operation, sign, magnitude=13)
    for i in range(32):
        alone = apply_operations(images[i : i + 1], operation[i : i + 1], sign[i : i + 1], magnitude=13)
        assert torch.equal(together[i], alone[0])


def test_images_of_one_grey_level_or_few_pixels_pass() -> None:
    operation = torch.arange(len(OPERATIONS))
    for shape in ((3, 8, 8), (1, 2, 2), (3, 1, 5)):
        images = torch.full((len(OPERATIONS), *shape), 7, dtype=torch.uint8)
        result = apply_operations(images, operation, torch.ones_like(operation), magnitude=0)
        assert torch.equal(result[operation != OPERATIONS.index("Solarize")], images[1:])


def test_all_operations_are_drawn_anew_in_every_epoch_by_seed_and_image_alone() -> None:
    images = pictures(3)[:1].expand(512, 3, 32, 24)
    index = torch.arange(512)

    def drawn(**changes: int) -> torch.Tensor:
        return rand_augment(images, index, **({"epoch": 0, "rng_seed": 0, "num_ops": 1, "magnitude": 9} | changes))

    first = drawn()
    assert 20 <= len(first.flatten(1).unique(dim=0)) <= 23  # nine operations have two directions
    assert torch.equal(first, drawn())
    assert torch.equal(
        first[100:200], rand_augment(images[:100], index[100:200], epoch=0, rng_seed=0, num_ops=1, magnitude=9)
    )
    assert not torch.equal(first, drawn(epoch=1))
    assert not torch.equal(first, drawn(rng_seed=1))
    assert len(drawn(num_ops=2).flatten(1).unique(dim=0)) > 100


def test_nothing_is_read_from_the_device() -> None:
    with FakeTensorMode():  # reading one of its tensors raises
        images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8, device="cuda")
        epoch, index = torch.zeros((), dtype=torch.int64, device="cuda"), torch.arange(4, device="cuda")
        result = rand_augment(images, index, epoch=epoch, rng_seed=0, num_ops=2, magnitude=9)
        assert result.shape == images.shape
        assert result.dtype == torch.uint8


def test_a_run_with_it_resumes_bit_identical_and_differs_from_one_without(tmp_path: Path) -> None:
    config = tiny_config(dataset__rand_augment_num_ops=2, dataset__rand_augment_magnitude=9)
    straight, _ = train(config, tmp_path / "straight")
    train(config, tmp_path / "stopped", stop_at=9)
    resumed, _ = train(config, tmp_path / "stopped")
    assert_same(straight, resumed)
    plain, _ = train(tiny_config(), tmp_path / "plain")
    with pytest.raises(AssertionError):
        assert_same(straight, plain)
