from __future__ import annotations

import pytest
import torch
from scipy.stats import ks_2samp, kstest
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from esper.data.augment import hash_bits
from esper.data.crop import crop_and_resize, random_boxes

N = 20_000


def boxes_of(height: int, width: int, n: int = N) -> torch.Tensor:
    return random_boxes(torch.tensor([height, width]).expand(n, 2), hash_bits(torch.arange(n), 0, 0))


def torchvision_boxes(height: int, width: int, n: int) -> torch.Tensor:
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(8)
    image = torch.empty(3, height, width)
    found = [crop.make_params([image]) for _ in range(n)]
    return torch.tensor([[box[key] for key in ("top", "left", "height", "width")] for box in found])


@pytest.mark.parametrize(("height", "width"), [(375, 500), (300, 300), (100, 260)])
def test_boxes_are_distributed_as_those_of_torchvision(height: int, width: int) -> None:
    ours, theirs = boxes_of(height, width).double(), torchvision_boxes(height, width, 3000).double()
    for measure in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 0] + b[:, 2],
        lambda b: (
            (b[:, 0] + b[:, 2] / 2 - height / 2) * (b[:, 1] + b[:, 3] / 2 - width / 2)
        ),  # independence of the axes
    ):
        assert ks_2samp(measure(ours).numpy(), measure(theirs).numpy()).pvalue > 1e-3


def test_areas_are_uniform_if_every_box_fits() -> None:
    area = boxes_of(4000, 4000).double()[:, 2:].prod(dim=1) / 4000**2
    small = area[area < 0.7]  # a larger box may not fit
    assert kstest(small.numpy(), "uniform", args=(0.08, 0.62)).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10)])
def test_an_image_too_long_for_any_box_gets_a_centre_crop(height: int, width: int) -> None:
    ours, theirs = boxes_of(height, width, 500), torchvision_boxes(height, width, 1)
    fallback = (ours == theirs).all(dim=1)
    assert fallback.double().mean() > 0.9
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor([height, width])).all()


def test_an_image_of_one_pixel_has_one_box() -> None:
    assert boxes_of(1, 1, 50).unique(dim=0).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("mirror", [False, True])
def test_crops_equal_those_of_torchvision(mirror: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    canvas = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([[0, 0, 32, 32], [3, 5, 9, 17], [20, 1, 12, 8], [31, 31, 1, 1], [0, 10, 32, 2]])
    n = len(boxes)
    ours = crop_and_resize(
        canvas.expand(n, 32, 32, 3),
        sizes=torch.full((n, 2), 32),
        boxes=boxes,
        image_size=24,
        flipped=torch.full((n,), mirror),
    )
    for image, (top, left, height, width) in zip(ours, boxes.tolist(), strict=True):
        image = image.flip(2) if mirror else image
        for pixels, tolerance in ((canvas.permute(2, 0, 1), 1.0), (canvas.permute(2, 0, 1).float(), 0.01)):
            theirs = F.resized_crop(pixels, top, left, height, width, [24, 24], antialias=False)
            assert (image.round() - theirs if tolerance == 1 else image - theirs).abs().max() <= tolerance


def test_a_box_in_the_original_image_is_mapped_to_the_square() -> None:
    canvas = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    squashed = crop_and_resize(  # of an image of 64 rows and 16 columns: half of each
        canvas,
        sizes=torch.tensor([[64, 16]]),
        boxes=torch.tensor([[32, 4, 32, 8]]),
        image_size=16,
        flipped=torch.tensor([False]),
    )
    assert torch.allclose(squashed[0], canvas[0, 16:, 8:24].permute(2, 0, 1).float(), atol=0.01)


def test_nothing_is_read_from_the_device() -> None:
    with FakeTensorMode():  # reading a value raises
        bits = hash_bits(torch.arange(4), 0, torch.tensor(3))
        sizes = torch.full((4, 2), 40)
        images = crop_and_resize(
            torch.zeros(4, 32, 32, 3, dtype=torch.uint8),
            sizes=sizes,
            boxes=random_boxes(sizes, bits),
            image_size=24,
            flipped=(bits >> 40 & 1).bool(),
        )
    assert images.shape == (4, 3, 24, 24)
