"""Decode image files into one tensor, and cache it on disk for later runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from esper.data.decode import decode_whole, unreadable
from esper.errors import DataError

__all__ = ["load_images"]

_SMALL_FILE_BYTES = 8192
"""Decoding a smaller file hardly releases the GIL: threads do not help."""
_VERSION = 2
"""Of the decoder: another one where its pixels change, so that caches of older versions are not used."""
_CHUNK = 64
"""Images that a thread decodes at a time."""

logger = logging.getLogger(__name__)


def load_images(
    folder: Path,
    files: Sequence[os.DirEntry[str]],
    *,
    image_size: int | None,
    num_threads: int,
    cache_dir: Path | None,
) -> Tensor:
    """Decode image files, or read them from the cache: uint8 (N, 3, H, W).

    Args:
        folder: parent of all files.
        files: the files; any that is added, removed or changed invalidates the cache.
        image_size: see `decode_whole`; None: all images must have one size.
        num_threads: threads that decode large files.
        cache_dir: folder of the cache; None: no cache.

    Raises:
        DataError: a file is not a readable image, or sizes differ.
    """
    if cache_dir is None:
        return _decode([file.path for file in files], image_size, num_threads)
    cached = cache_dir / f"{_digest(folder, files, image_size)}.safetensors"
    images = _read(cached)
    if images is None:
        images = _decode([file.path for file in files], image_size, num_threads)
        _write(cached, images)
    return images


def _digest(folder: Path, files: Sequence[os.DirEntry[str]], image_size: int | None) -> str:
    """Hash the version of the decoder, and names, sizes and modification times of the files."""
    entries, prefix = [], len(os.path.join(folder, ""))  # noqa: PTH118
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:  # such as a dangling link
            raise unreadable(file.path, error) from None
        entries.append((file.path[prefix:], stat.st_size, stat.st_mtime_ns))
    content = json.dumps([_VERSION, str(folder.resolve()), image_size, entries])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def _decode(paths: Sequence[str], image_size: int | None, num_threads: int) -> Tensor:
    first = decode_whole(paths[0], image_size)
    images = torch.empty((len(paths), *first.shape), dtype=torch.uint8)

    def fill(chunk: range) -> None:
        for index in chunk:
            image = decode_whole(paths[index], image_size)
            if image.shape != first.shape:
                raise DataError(
                    f"{paths[index]}: {image.shape[2]}x{image.shape[1]} pixels, but {Path(paths[0]).name} has "
                    f"{first.shape[2]}x{first.shape[1]}; set dataset.image_size to resize all images"
                )
            images[index] = image

    num_threads = max(1, num_threads) if Path(paths[0]).stat().st_size > _SMALL_FILE_BYTES else 1
    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        for _ in pool.map(fill, (range(len(paths))[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK))):
            pass
    return images


def _read(path: Path) -> Tensor | None:
    try:
        tensors = load_file(path)
        if tensors["sha256"].numpy().tobytes() == _sha256(tensors["images"]):
            return tensors["images"]
        reason = "wrong checksum"
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError) as error:
        reason = str(error)
    logger.warning("%s is damaged (%s); decoding the images again", path, reason)
    return None


def _write(path: Path, images: Tensor) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    checksum = torch.frombuffer(bytearray(_sha256(images)), dtype=torch.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": images, "sha256": checksum}, temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        logger.warning("cannot cache decoded images in %s (%s); every run will decode them", path.parent, error)
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sha256(images: Tensor) -> bytes:
    return hashlib.sha256(images.numpy().reshape(-1).data).digest()
