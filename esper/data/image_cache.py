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

from esper import hanging, stopping
from esper.data.decode import decode_whole, unreadable
from esper.errors import DataError

__all__ = ["load_images"]

_SMALL_FILE_BYTES = 8192
"""Decoding a smaller file hardly releases the GIL: threads do not help."""
_VERSION = 3
"""Of the decoder and of what is cached: another one where these change, so that older caches are not used."""
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
    contents: str,
    timeout_s: float,
) -> tuple[Tensor, dict[str, str]]:
    """Decode image files, or read them from the cache.

    Args:
        folder: parent of all files.
        files: the files; any that is added, removed or changed invalidates the cache.
        image_size: see `decode_whole`; None: all images must have one size.
        num_threads: threads that decode large files.
        cache_dir: folder of the cache; None: no cache.
        contents: digests of the files' contents; others invalidate the cache.
        timeout_s: how long a file may take before the process is ended.

    Returns:
        The images, uint8 (N, 3, H, W), and path and damage of the JPEGs that are damaged inside.

    Raises:
        DataError: a file is not a readable image, or sizes differ.
    """
    if cache_dir is None:
        return _decode([file.path for file in files], image_size, num_threads, timeout_s)
    cached = cache_dir / f"{_digest(folder, files, image_size, contents)}.safetensors"
    found = _read(cached)
    if found is None:
        found = _decode([file.path for file in files], image_size, num_threads, timeout_s)
        _write(cached, *found)
    return found


def _digest(folder: Path, files: Sequence[os.DirEntry[str]], image_size: int | None, contents: str) -> str:
    """Hash the version of the decoder, and names, sizes, modification times and contents of the files."""
    entries, prefix = [], len(os.path.join(folder, ""))  # noqa: PTH118
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:  # such as a dangling link
            raise unreadable(file.path, error) from None
        entries.append((file.path[prefix:], stat.st_size, stat.st_mtime_ns))
    content = json.dumps([_VERSION, str(folder.resolve()), image_size, entries, contents])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def _decode(
    paths: Sequence[str], image_size: int | None, num_threads: int, timeout_s: float
) -> tuple[Tensor, dict[str, str]]:
    damaged: dict[str, str] = {}

    def decode(path: str) -> Tensor:
        stopping.check()
        hanging.beat()
        with hanging.waiting(f"decoding {path}", timeout_s=timeout_s, setting="dataset.timeout_s"):
            return decode_whole(path, image_size, damaged)

    first = decode(paths[0])
    images = torch.empty((len(paths), *first.shape), dtype=torch.uint8)

    def fill(chunk: range) -> None:
        for index in chunk:
            image = decode(paths[index])
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
    return images, damaged


def _read(path: Path) -> tuple[Tensor, dict[str, str]] | None:
    try:
        tensors = load_file(path)
        if tensors["sha256"].numpy().tobytes() == _sha256(tensors["images"], tensors["damaged"]):
            return tensors["images"], json.loads(tensors["damaged"].numpy().tobytes())
        reason = "wrong checksum"
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError) as error:
        reason = str(error)
    logger.warning("%s is damaged (%s); decoding the images again", path, reason)
    return None


def _write(path: Path, images: Tensor, damaged: dict[str, str]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = torch.frombuffer(bytearray(json.dumps(damaged).encode()), dtype=torch.uint8)
    checksum = torch.frombuffer(bytearray(_sha256(images, text)), dtype=torch.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": images, "damaged": text, "sha256": checksum}, temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        logger.warning("cannot cache decoded images in %s (%s); every run will decode them", path.parent, error)
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sha256(images: Tensor, damaged: Tensor) -> bytes:
    digest = hashlib.sha256(images.numpy().reshape(-1).data)
    digest.update(damaged.numpy().data)
    return digest.digest()
