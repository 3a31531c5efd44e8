from __future__ import annotations

import torch
import torch.nn.functional as F

from esper.data.augment import augment, hash_bits


def images(n: int, size: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_every_image_is_a_shifted_and_possibly_flipped_copy() -> None:
    batch = images(64)
    result = augment(batch, torch.arange(64), epoch=3, rng_seed=1, crop_padding=2, horizontal_flip=True)
    for image, changed in zip(batch, result, strict=True):
        possible = [
            F.pad(view, [2] * 4)[:, y : y + 6, x : x + 6]
            for view in (image, image.flip(2))
            for y in range(5)
            for x in range(5)
        ]
        assert any(torch.equal(changed, candidate) for candidate in possible)


def test_shifts_and_flips_are_uniform() -> None:
    n = 50_000
    batch = torch.zeros(n, 1, 1, 3, dtype=torch.uint8)
    batch[..., 0], batch[..., 2] = 1, 2  # left and right differ, to detect flips
    mirrored = augment(batch, torch.arange(n), epoch=0, rng_seed=0, crop_padding=0, horizontal_flip=True)[..., 0] == 2
    assert abs(mirrored.double().mean() - 0.5) < 0.01
    dot = torch.zeros(n, 1, 5, 5, dtype=torch.uint8)
    dot[:, :, 2, 2] = 1
    moved = augment(dot, torch.arange(n), epoch=0, rng_seed=0, crop_padding=2, horizontal_flip=False)
    counts = moved.sum(0, dtype=torch.int64)[0].double()
    assert counts.sum() == n
    assert ((counts - n / 25).abs() < 5 * (n / 25) ** 0.5).all()  # five standard deviations


def test_augmentation_does_not_depend_on_the_batch() -> None:
    batch, index = images(10), torch.arange(100, 110)
    options = {"epoch": 5, "rng_seed": 2, "crop_padding": 2, "horizontal_flip": True}
    whole = augment(batch, index, **options)  # type: ignore[arg-type]
    order = torch.tensor([7, 2, 9])
    assert torch.equal(augment(batch[order], index[order], **options), whole[order])  # type: ignore[arg-type]


def test_epoch_and_seed_change_the_hash_and_may_be_tensors() -> None:
    index = torch.arange(1000)
    base = hash_bits(index, 0, 0)
    assert (base == hash_bits(index, 0, torch.tensor(0))).all()
    assert base.unique().numel() == 1000
    for words in ((0, 1), (1, 0)):
        agreement = (hash_bits(index, *words) % 2 == base % 2).double().mean()
        assert 0.4 < agreement < 0.6
