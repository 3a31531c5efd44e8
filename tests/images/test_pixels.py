"""Each kind of image is decoded as a viewer shows it, kept whole or streamed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from esper.errors import DataError
from esper.images.decode import Resize, decode_chunk, decode_whole
from esper.images.pixels import suffixes

Decoder = Callable[[Path], NDArray[np.uint8]]
SIDE = 16
RAMP = (np.arange(SIDE * SIDE) * 255 + 100).astype(np.uint16).reshape(SIDE, SIDE)
SHAPE = np.zeros((SIDE, SIDE), dtype=np.uint8)
SHAPE[4:12, 6:14] = 255
RED_SHAPE = np.where(SHAPE[..., None] == 255, (200, 30, 30), 255)
"""What a viewer shows of the shape in red, over white."""


def whole(path: Path) -> NDArray[np.uint8]:
    return decode_whole(str(path), None).transpose(1, 2, 0)


def streamed(path: Path) -> NDArray[np.uint8]:
    images, sizes, _ = decode_chunk([str(path)], Resize(SIDE, SIDE))
    assert sizes.tolist() == [[SIDE, SIDE]]
    return images[0]


@pytest.fixture(params=[whole, streamed])
def decode(request: pytest.FixtureRequest) -> Decoder:
    return request.param  # type: ignore[no-any-return]


def png(path: Path, pixels: NDArray[np.integer], *, depth: int, colour: int, transparent: bytes = b"") -> Path:
    """Write a PNG of a kind that Pillow cannot write; `pixels` are (H, W, C), or packed bytes (H, N)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in pixels)
    transparency = chunk(b"tRNS", transparent) if transparent else b""
    content = chunk(b"IHDR", header) + transparency + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def grey(values: NDArray[np.integer]) -> NDArray[np.integer]:
    return np.repeat(values[..., None], 3, axis=2)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, decode: Decoder, suffix: str) -> None:
    path = tmp_path / f"ramp.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 %d %d 65535\n" % (SIDE, SIDE) + RAMP.astype(">u2").tobytes())
    else:
        Image.fromarray(RAMP).save(path)
    assert (decode(path) == grey(RAMP >> 8)).all()


def tiff(path: Path, content: bytes, *, order: str = ">", depth: int = 16, compressed: bool = False) -> None:
    """Write a grey TIFF of a kind that Pillow does not write; `content` are its pixels."""
    content = zlib.compress(content) if compressed else content
    content += b"\0" * (len(content) % 2)
    compression = 8 if compressed else 1
    entries = {256: SIDE, 257: SIDE, 258: depth, 259: compression, 262: 1, 273: 8, 278: SIDE, 279: len(content)}
    tags = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in entries.items())
    directory = struct.pack(f"{order}H", len(entries)) + tags + bytes(4)
    magic = {">": b"MM\0*", "<": b"II*\0"}[order]
    path.write_bytes(magic + struct.pack(f"{order}I", 8 + len(content)) + content + directory)


@pytest.mark.parametrize("compressed", [False, True])
def test_sixteen_bit_grey_of_a_big_endian_tiff_is_scaled(tmp_path: Path, decode: Decoder, compressed: bool) -> None:
    tiff(tmp_path / "ramp.tiff", RAMP.astype(">u2").tobytes(), compressed=compressed)
    assert (decode(tmp_path / "ramp.tiff") == grey(RAMP >> 8)).all()


def test_twelve_bit_grey_is_scaled(tmp_path: Path, decode: Decoder) -> None:
    values = (RAMP >> 4).reshape(-1, 2).astype(int)
    packed = [values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255]
    tiff(tmp_path / "ramp.tif", np.stack(packed, axis=1).astype(np.uint8).tobytes(), order="<", depth=12)
    assert (decode(tmp_path / "ramp.tif") == grey(RAMP >> 8)).all()


def test_a_tiff_whose_white_is_zero_is_not_a_negative(tmp_path: Path, decode: Decoder) -> None:
    Image.fromarray(RAMP).save(tmp_path / "ramp.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "ramp.tif") as file:
        assert file.tag_v2[262] == 0  # type: ignore[attr-defined]
    assert (decode(tmp_path / "ramp.tif") == grey(255 - (RAMP >> 8))).all()


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colour_is_scaled(tmp_path: Path, decode: Decoder, channels: int) -> None:
    pixels = np.stack([RAMP, RAMP.T, RAMP[::-1], np.full_like(RAMP, 65535)][:channels], axis=2)
    png(tmp_path / "colour.png", pixels, depth=16, colour={3: 2, 4: 6}[channels])
    assert (decode(tmp_path / "colour.png") == pixels[..., :3] >> 8).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_without_a_known_range_are_refused(tmp_path: Path, decode: Decoder, dtype: type) -> None:
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "depth.tif")
    with pytest.raises(DataError, match=r"depth.tif: not a readable image \(a viewer does not know the range of"):
        decode(tmp_path / "depth.tif")


def write_transparent(path: Path, mode: str) -> None:
    """Write a red (or grey) shape that only transparency tells from what surrounds it."""
    red = np.full((SIDE, SIDE, 3), (200, 30, 30), dtype=np.uint8)
    rgba = Image.fromarray(np.dstack([red, SHAPE]))
    if mode == "P":
        image = Image.fromarray((SHAPE > 0).astype(np.uint8))
        image.putpalette([200, 30, 30, 200, 30, 30])
        image.save(path, transparency=bytes([0, 255]) if path.suffix == ".png" else 0)
    elif mode == "LA":
        Image.fromarray(np.dstack([np.full_like(SHAPE, 70), SHAPE]), mode="LA").save(path)
    else:
        rgba.save(path, lossless=True) if path.suffix == ".webp" else rgba.save(path)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.png", "RGBA"), ("a.webp", "RGBA"), ("a.tif", "RGBA"), ("a.png", "P"), ("a.gif", "P"), ("a.png", "LA")],
)
def test_transparent_pixels_are_shown_over_white(tmp_path: Path, decode: Decoder, name: str, mode: str) -> None:
    write_transparent(tmp_path / name, mode)
    assert (decode(tmp_path / name) == (np.where(grey(SHAPE) == 255, 70, 255) if mode == "LA" else RED_SHAPE)).all()


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path, decode: Decoder) -> None:
    Image.new("RGBA", (SIDE, SIDE), (0, 100, 255, 51)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png")[0, 0].tolist() == [204, 224, 255]


def test_a_fourth_channel_of_zeros_in_a_tga_is_no_transparency(tmp_path: Path, decode: Decoder) -> None:
    Image.fromarray(np.dstack([RED_SHAPE, np.zeros_like(SHAPE)]).astype(np.uint8)).save(tmp_path / "a.tga")
    assert (decode(tmp_path / "a.tga") == RED_SHAPE).all()
    write_transparent(tmp_path / "b.tga", "RGBA")
    assert (decode(tmp_path / "b.tga") == RED_SHAPE).all()


@pytest.mark.parametrize("depth", [2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_is_shown_over_white(tmp_path: Path, decode: Decoder, depth: int) -> None:
    one = np.where(SHAPE == 255, 2, 1)
    packed = one if depth >= 8 else sum(one[:, i :: 8 // depth] << (8 - depth * (i + 1)) for i in range(8 // depth))
    png(tmp_path / "a.png", np.asarray(packed), depth=depth, colour=0, transparent=struct.pack(">H", 1))
    shade = {2: 170, 4: 34, 8: 2, 16: 0}[depth]
    assert (decode(tmp_path / "a.png") == grey(np.where(SHAPE == 255, shade, 255))).all()


def test_the_transparent_bit_of_a_png_is_shown_over_white(tmp_path: Path, decode: Decoder) -> None:
    rows = np.packbits(SHAPE == 255, axis=1)
    png(tmp_path / "black.png", rows, depth=1, colour=0, transparent=struct.pack(">H", 0))
    assert (decode(tmp_path / "black.png") == 255).all()
    png(tmp_path / "white.png", rows, depth=1, colour=0, transparent=struct.pack(">H", 1))
    assert (decode(tmp_path / "white.png") == grey(SHAPE)).all()


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_of_a_png_is_shown_over_white(tmp_path: Path, decode: Decoder, depth: int) -> None:
    unit = 257 if depth == 16 else 1
    pixels = np.where(SHAPE[..., None] == 255, (200, 30, 30), (200, 30, 31)) * unit
    transparent = struct.pack(">3H", 200 * unit, 30 * unit, 31 * unit)
    png(tmp_path / "a.png", pixels, depth=depth, colour=2, transparent=transparent)
    assert (decode(tmp_path / "a.png") == RED_SHAPE).all()


ORIENTED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def write_turned(path: Path, orientation: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Write a picture that is to be turned; returns its pixels as stored."""
    corners = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [250, 250, 250]]], dtype=np.uint8)
    image = Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}))
    return np.array(image)


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_the_exif_orientation_is_applied(tmp_path: Path, name: str, orientation: int) -> None:
    stored = write_turned(tmp_path / name, orientation, (24, SIDE))
    expected = ORIENTED[orientation](stored)
    pixels = whole(tmp_path / name)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 3
    _, sizes, _ = decode_chunk([str(tmp_path / name)], Resize(SIDE, None))
    assert sizes.tolist() == [list(expected.shape[:2])]


def test_a_turned_jpeg_decoded_at_reduced_scale_is_turned_too(tmp_path: Path) -> None:
    write_turned(tmp_path / "large.jpg", 6, (1000, 600))
    images, sizes, _ = decode_chunk([str(tmp_path / "large.jpg")], Resize(SIDE, SIDE))
    assert sizes.tolist() == [[1000, 600]]
    full = decode_whole(str(tmp_path / "large.jpg"), SIDE).transpose(1, 2, 0)
    assert np.abs(images[0].astype(int) - full).mean() < 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # from Pillow, when it opens the file
def test_damaged_exif_data_does_not_make_an_image_unreadable(tmp_path: Path, decode: Decoder) -> None:
    image = Image.fromarray(np.dstack([SHAPE] * 3))
    for i, exif in enumerate(
        [b"Exif\0\0MM", b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 9]
    ):
        image.save(tmp_path / f"{i}.jpg", exif=exif, quality=100)
        assert np.abs(decode(tmp_path / f"{i}.jpg").astype(int) - np.dstack([SHAPE] * 3)).mean() < 2


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_is_shown_in_its_colours(tmp_path: Path, decode: Decoder, name: str) -> None:
    image = Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0))
    image.save(tmp_path / name, **({"quality": 100} if name == "a.jpg" else {}))
    assert np.abs(decode(tmp_path / name).astype(int) - (255, 0, 0)).max() < 4


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_the_first_of_several_frames_is_shown(tmp_path: Path, decode: Decoder, name: str) -> None:
    first, *others = (Image.new("RGB", (SIDE, SIDE), colour) for colour in ("blue", "red", "lime"))
    lossless = {"lossless": True} if name == "a.webp" else {}
    first.save(tmp_path / name, save_all=True, append_images=others, **lossless)
    assert (decode(tmp_path / name) == (0, 0, 255)).all()


def test_one_bit_images_are_black_and_white(tmp_path: Path, decode: Decoder) -> None:
    for name in ("a.png", "a.tif", "a.pbm"):
        Image.fromarray(SHAPE).convert("1").save(tmp_path / name)
        assert (decode(tmp_path / name) == grey(SHAPE)).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "CMYK"])
def test_ordinary_images_are_decoded_bit_for_bit_as_pillow_converts_them(
    tmp_path: Path, decode: Decoder, mode: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    suffix = {"RGBA": "png", "P": "png", "CMYK": "jpg"}.get(mode, "bmp")
    Image.fromarray(noise).convert(mode).save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as file:
        expected = np.array(file.convert("RGB"))
    assert (decode(tmp_path / f"a.{suffix}") == expected).all()


def test_suffixes_are_those_of_raster_formats() -> None:
    assert {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".tif", ".webp", ".bmp", ".gif", ".ppm", ".pgm"} <= suffixes()
    assert not {".eps", ".pdf", ".h5", ".mpg", ".wmf", ".pcd", ".txt", ""} & suffixes()


def test_a_program_for_printers_is_no_image_whatever_its_name(tmp_path: Path, decode: Decoder) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.png: not a readable image"):
        decode(tmp_path / "a.png")


def test_tensors_of_both_decoders_are_eight_bit_rgb(tmp_path: Path) -> None:
    write_transparent(tmp_path / "a.png", "LA")
    assert decode_whole(str(tmp_path / "a.png"), 8).shape == (3, 8, 8)
    assert decode_chunk([str(tmp_path / "a.png")], Resize(8, 8))[0].dtype == np.uint8
