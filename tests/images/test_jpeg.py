"""JPEGs that decoders repair without a word are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from esper.configs import DatasetConfig
from esper.data import load_splits
from esper.images.jpeg import jpeg_damage, plain_jpeg
from tests.data.photos import CLASSES, damage, paint, write_photos


def damage_of(file: Path) -> str | None:
    with Image.open(file) as image:
        image.load()  # Pillow says nothing
        return jpeg_damage(str(file), image)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_lost_bytes_and_lost_blocks_are_damage(tmp_path: Path, mode: str) -> None:
    for name in ("bytes.jpg", "blocks.jpg"):
        paint(tmp_path / name, size=(500, 400), seed=1, mode=mode)
        assert damage_of(tmp_path / name) is None
    damage(tmp_path / "bytes.jpg")
    content = bytearray((tmp_path / "blocks.jpg").read_bytes())
    content[8192 : 8192 + 512] = bytes(512)
    (tmp_path / "blocks.jpg").write_bytes(content)
    for name in ("bytes.jpg", "blocks.jpg"):
        assert (damage_of(tmp_path / name) or "").startswith("Corrupt JPEG data")


def test_what_is_only_unusual_is_no_damage(tmp_path: Path) -> None:
    paint(tmp_path / "a.jpg", size=(200, 160), seed=1)
    with Image.open(tmp_path / "a.jpg") as image:
        image.save(tmp_path / "progressive.jpg", progressive=True)
        image.save(tmp_path / "b.png")
        image.save(tmp_path / "b.mpo", save_all=True, append_images=[image])
    (tmp_path / "trailing.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + bytes(5000))
    for name in ("progressive.jpg", "b.png", "b.mpo", "trailing.jpg"):
        assert damage_of(tmp_path / name) is None


def test_images_in_memory_are_checked_once_and_told_of_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "photos")
    for name in (f"train/{CLASSES[0]}/{CLASSES[0]}_004.JPEG", f"val/{CLASSES[1]}/{CLASSES[1]}_002.JPEG"):
        damage(photos / name)
    config = DatasetConfig(name="imagefolder", data_dir=str(photos), image_size=16, batch_size=4, val_split=0.2)
    for _ in range(2):
        (notice,) = load_splits(config, rng_seed=0, cache_dir=tmp_path / "cache").notices
        assert notice.startswith(
            f"dataset.data_dir={photos}: JPEG files damaged inside, used as far as they can be deco"
        )
        assert f"decoded: 2 (train/{CLASSES[0]}/{CLASSES[0]}_004.JPEG: Corrupt JPEG data" in notice
        monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_jpegs_are_decoded_to_the_bits_of_pillow(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    paint(tmp_path / "a.png", size=(201, 163), seed=1, mode=mode)
    with Image.open(tmp_path / "a.png") as image:
        image.save(tmp_path / "a.jpg", **options)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(plain_jpeg(str(tmp_path / "a.jpg")), expected)


def test_only_plain_jpegs_are_decoded_without_pillow(tmp_path: Path) -> None:
    for name, mode in (("cmyk.jpg", "CMYK"), ("other.png", "RGB"), ("damaged.jpg", "RGB"), ("plain.jpg", "RGB")):
        paint(tmp_path / name, size=(500, 400), seed=1, mode=mode)
    damage(tmp_path / "damaged.jpg")
    with Image.open(tmp_path / "other.png") as image:
        image.save(tmp_path / "turned.jpg", exif=Image.Exif())
        image.save(tmp_path / "several.mpo", save_all=True, append_images=[image])
    (tmp_path / "empty.jpg").write_bytes(b"")
    plain = [file.name for file in tmp_path.iterdir() if plain_jpeg(str(file)) is not None]
    assert plain == ["plain.jpg"]
