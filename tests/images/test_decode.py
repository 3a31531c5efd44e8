from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esper.errors import DataError
from esper.images.decode import Resize, decode_chunk, decode_whole
from tests.data.photos import paint


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_an_image_is_squashed_to_a_square_and_its_original_size_returned(tmp_path: Path, mode: str) -> None:
    paint(tmp_path / "a.jpg", size=(90, 40), seed=1, mode=mode)
    images, sizes, _ = decode_chunk([str(tmp_path / "a.jpg")], Resize(side=32, crop=None))
    assert sizes.tolist() == [[40, 90]]
    with Image.open(tmp_path / "a.jpg") as file:
        expected = file.convert("RGB").resize((32, 32), Image.Resampling.BOX)
    difference = images[0].astype(int) - np.array(expected)
    assert np.abs(difference).mean() < 3


def test_the_shorter_side_is_resized_and_the_centre_cropped(tmp_path: Path) -> None:
    image = Image.new("RGB", (80, 40))
    image.paste((255, 255, 255), (30, 10, 50, 30))  # the central quarter
    image.save(tmp_path / "a.png")
    images, _, _ = decode_chunk([str(tmp_path / "a.png")], Resize(side=20, crop=10))
    assert images.shape == (1, 10, 10, 3)
    assert images[0, 1:-1, 1:-1].min() == 255


def test_a_jpeg_decoded_at_reduced_scale_is_close_to_one_decoded_in_full(tmp_path: Path) -> None:
    paint(tmp_path / "large.jpg", size=(1600, 1200), seed=3)
    fast, sizes, _ = decode_chunk([str(tmp_path / "large.jpg")], Resize(side=64, crop=64))
    full = decode_whole(str(tmp_path / "large.jpg"), 64).transpose(1, 2, 0)
    assert sizes.tolist() == [[1200, 1600]]
    assert np.abs(fast[0].astype(int) - full).mean() < 1.5


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    paint(tmp_path / "half.jpg", size=(90, 40), seed=1)
    content = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"half.jpg: not a readable image \(.*truncated.*\); repair or remove it"):
        decode_chunk([str(tmp_path / "half.jpg")], Resize(side=8, crop=8))
