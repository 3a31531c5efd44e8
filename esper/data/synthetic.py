"""Images made up on the spot, learnable but not trivial: for trying things out and for tests."""

from __future__ import annotations

import torch

from esper.data.splits import ImageSet, Source

__all__ = ["make_synthetic"]

_NUM_CLASSES = 10


def make_synthetic(*, image_size: int, num_examples: int) -> Source:
    """Coloured stripes whose direction and frequency tell the class, with noise and a random phase.

    Args:
        image_size: height and width.
        num_examples: training images; a quarter as many are made for the test set, at least 20.
    """
    generator = torch.Generator().manual_seed(0)
    num_test = max(20, num_examples // 4)
    return Source(
        train=_make(num_examples, image_size, generator),
        test=_make(num_test, image_size, generator),
        class_names=tuple(f"stripes{label}" for label in range(_NUM_CLASSES)),
    )


def _make(n: int, size: int, generator: torch.Generator) -> ImageSet:
    labels = torch.arange(n) % _NUM_CLASSES
    angle = labels * (torch.pi / _NUM_CLASSES)
    frequency = 2.0 * torch.pi * (1.5 + labels % 2) / size
    phase = 2.0 * torch.pi * torch.rand(n, 3, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    along = angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y
    waves = torch.sin(frequency[:, None, None, None] * along[:, None] + phase)
    noise = torch.randn(n, 3, size, size, generator=generator)
    images = (127.5 + 60.0 * waves + 40.0 * noise).clamp(0, 255).to(torch.uint8)
    return ImageSet(images, labels)
