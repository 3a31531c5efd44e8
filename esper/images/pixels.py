"""Pixels of an image file, as a viewer shows them."""

from __future__ import annotations

import functools
import struct

import numpy as np
from PIL import ExifTags, Image, ImageFile

__all__ = ["as_shown", "formats", "orientation", "suffixes"]

_FORMATS = (
    *("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000"),
    *("DDS", "DIB", "ICNS", "ICO", "PCX", "QOI", "SGI", "SUN", "TGA", "XBM", "XPM"),
)
"""Raster formats of Pillow that are read; none runs another program, as EPS does, or is a container of data."""
_BACKGROUND = (255, 255, 255, 255)
"""Transparent pixels are shown over white."""
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE_IS_ZERO = 0


@functools.cache
def formats() -> tuple[str, ...]:
    """Formats that are read, and that this build of Pillow can open."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@functools.cache
def suffixes() -> frozenset[str]:
    """File suffixes of the formats that are read, lower case, with the dot."""
    readable = {*formats(), "MPO"}  # a JPEG with several images
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in readable)


def as_shown(file: Image.Image) -> Image.Image:
    """Decode an opened image, its first frame if it has several, as 8-bit RGB.

    Of 16 bits the high byte is kept, as Pillow does for colour. Transparent pixels are shown over white, and the EXIF
    orientation is applied. Colour profiles are not.

    Raises:
        ValueError: its values have no range that a viewer knows (32 bits, signed or floating point).
    """
    tile = file.tile if isinstance(file, ImageFile.ImageFile) and file.format == "PNG" else []
    rawmode = str(tile[0][3]) if tile else ""
    file.load()
    method = _ORIENTATIONS.get(orientation(file))
    image = _rgb(file, rawmode)
    return image if method is None else image.transpose(method)


def orientation(file: Image.Image) -> int:
    """EXIF orientation, 1 to 8; from 5 on, height and width are exchanged. Of TIFFs Pillow applies it when it loads."""
    try:
        value = file.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        return 1  # viewers show images whose EXIF data is damaged
    return value if value in _ORIENTATIONS else 1


def _rgb(file: Image.Image, rawmode: str) -> Image.Image:
    """Convert a loaded image; `rawmode` is that of a PNG's pixels in the file."""
    key = file.info.get("transparency")  # the colour that is transparent, in the units of the file
    if file.mode.startswith("I;16") or file.mode in ("I", "F"):
        values = _sixteen_bits(file)
        image = Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
        opaque = values != key
    elif key is not None and file.mode in ("1", "L", "RGB"):
        image = file.convert("L" if file.mode == "1" else file.mode)
        opaque = np.atleast_3d(np.asarray(image) != _eight_bits(key, rawmode)).any(axis=2)
        image = image.convert("RGB")
    elif file.has_transparency_data and not _has_unused_alpha(file):
        return _over_background(file.convert("RGBA"))
    else:
        return file.convert("RGB")
    if key is None:
        return image
    image.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    return _over_background(image)


def _eight_bits(key: int | tuple[int, ...], rawmode: str) -> int | tuple[int, ...]:
    """A transparent colour in the units of decoded pixels."""
    if isinstance(key, tuple):
        return tuple(value >> 8 for value in key) if ";16" in rawmode else key
    return {"1": 255 * bool(key), "L;2": 85 * key, "L;4": 17 * key}.get(rawmode, key)


def _sixteen_bits(file: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.integer]]:
    """Grey values in [0, 65535], (H, W)."""
    if file.mode == "F" or (file.mode == "I" and file.format not in ("PNG", "PPM")):
        raise ValueError("a viewer does not know the range of its values; save it with 8 or 16 bits a channel")
    values = np.asarray(file).astype(np.int32)
    tags = getattr(file, "tag_v2", {})  # of a TIFF
    if tags.get(ExifTags.Base.BitsPerSample, (16,))[0] == 12:
        values = values << 4
    if tags.get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO:
        values = 65535 - values
    return values


def _has_unused_alpha(file: Image.Image) -> bool:
    """Whether the fourth channel is only there to fill up 32 bits, as in many TGAs."""
    return file.format == "TGA" and file.mode == "RGBA" and not np.asarray(file)[..., 3].any()


def _over_background(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, _BACKGROUND), image).convert("RGB")
