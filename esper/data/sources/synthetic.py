"""Generated images, learnable but not trivial: for tests and dry runs."""

from __future__ import annotations

from pathlib import Path

import torch

from esper.configs import DatasetConfig
from esper.configs.dataset import DATASETS
from esper.data.images import Dataset, ImageSet
from esper.images.fingerprint import Fingerprint

__all__ = ["fingerprint", "load", "make_synthetic"]

_NUM_CLASSES = 10
_DEFAULT_NUM_EXAMPLES = 2048


def load(config: DatasetConfig, _cache_dir: Path | None) -> Dataset:
    """Generate the dataset; it does not depend on `rng_seed`."""
    return make_synthetic(**_sizes(config))


def fingerprint(config: DatasetConfig) -> Fingerprint:
    """Only the sizes, which determine the images but for the last bits of the machine's arithmetic."""
    return _fingerprint(**_sizes(config))


def _sizes(config: DatasetConfig) -> dict[str, int]:
    image_size = config.image_size or DATASETS["synthetic"].image_size
    assert image_size is not None
    return {"image_size": image_size, "num_examples": config.num_examples or _DEFAULT_NUM_EXAMPLES}


def _fingerprint(*, image_size: int, num_examples: int) -> Fingerprint:
    return Fingerprint({"stripes": (num_examples, "", f"{image_size} pixels")})


def make_synthetic(*, image_size: int, num_examples: int) -> Dataset:
    """Coloured stripes with noise and a random phase; their direction and frequency give the class.

    Args:
        image_size: height and width.
        num_examples: training images; the test set has a quarter as many, at least 20.
    """
    generator = torch.Generator().manual_seed(0)
    num_test = max(20, num_examples // 4)
    return Dataset(
        train=_make(num_examples, image_size, generator),
        test=_make(num_test, image_size, generator),
        class_names=tuple(f"stripes{label}" for label in range(_NUM_CLASSES)),
        fingerprint=_fingerprint(image_size=image_size, num_examples=num_examples),
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
