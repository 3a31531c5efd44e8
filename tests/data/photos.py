"""A small folder of photographs: JPEGs of differing sizes and modes, like ImageNet's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n00000001", "n00000002")


def paint(path: Path, *, size: tuple[int, int], seed: int, mode: str = "RGB") -> None:
    """Smooth random colours; `size` is width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path, quality=95)


def write_photos(folder: Path, *, num_train: int = 20, num_val: int = 4) -> Path:
    """`train/` and `val/` with two classes, and so many images of each; a grey and a CMYK one are among them."""
    for split, num in (("train", num_train), ("val", num_val)):
        for label, name in enumerate(CLASSES):
            for i in range(num):
                mode = {0: "L", 1: "CMYK"}.get(i, "RGB")
                size = (40 + 7 * (i % 5), 60 - 5 * (i % 4))
                paint(folder / split / name / f"{name}_{i:03}.JPEG", size=size, seed=1000 * label + i, mode=mode)
    return folder


def damage(file: Path) -> None:
    """Remove a quarter from the middle of a JPEG: decoders fill up what is missing."""
    content = file.read_bytes()
    middle, length = len(content) // 2, len(content) // 4
    file.write_bytes(content[:middle] + content[middle + length :])
