"""Decode image files into one array, and cache it on disk for later runs, which map that file into their memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import mmap
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.lib.format as npy
from numpy.typing import NDArray

from esper import hanging, stopping
from esper.errors import DataError
from esper.images.decode import decode_whole, unreadable

__all__ = ["Images", "cache_place", "load_images", "mapped"]

_SMALL_FILE_BYTES = 8192
"""Decoding a smaller file hardly releases the GIL: threads do not help."""
_VERSION = 4
"""Of the decoder and of what is cached: another one where these change, so that older caches are not used."""
_CHUNK = 64
"""Images that a thread or process decodes at a time."""

Images = NDArray[np.uint8]
"""(N, 3, H, W)."""

logger = logging.getLogger(__name__)


def load_images(
    paths: Sequence[str],
    place: Path | None,
    *,
    image_size: int | None,
    num_threads: int,
    timeout_s: float,
    num_processes: int,
    progress: Callable[[bool], None],
) -> tuple[Images, dict[str, str], bool]:
    """Decode image files, or read them from the cache.

    Args:
        paths: the files.
        place: see `cache_place`; None: no cache.
        image_size: see `decode_whole`; None: all images must have one size.
        num_threads: threads that decode large files.
        timeout_s: how long a file may take before the process is ended.
        num_processes: forked processes that decode instead of threads, only where no other threads run; 0: none.
        progress: called with True before decoding and after every few files, with False after the last.

    Returns:
        The images; path and damage of the JPEGs that are damaged inside; and whether the images are in the cache.

    Raises:
        DataError: a file is not a readable image, or sizes differ.
    """
    if place is not None and (found := _read(place)) is not None:
        return *found, True
    images, damaged = _decode(paths, image_size, num_threads, num_processes, timeout_s, progress)
    return images, damaged, place is not None and _write(place, images, damaged)


def cache_place(
    cache_dir: Path, folder: Path, files: Sequence[os.DirEntry[str]], image_size: int | None, contents: str
) -> Path:
    """The cache of some files, without suffix: a hash of the decoder's version, and of all that it depends on.

    Args:
        cache_dir: folder of the cache.
        folder: parent of all files.
        files: the files; any that is added, removed or changed invalidates the cache.
        image_size: see `decode_whole`.
        contents: digests of the files' contents; others invalidate the cache.

    Raises:
        DataError: a file cannot be found.
    """
    entries, prefix = [], len(os.path.join(folder, ""))  # noqa: PTH118
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:  # such as a dangling link
            raise unreadable(file.path, error) from None
        entries.append((file.path[prefix:], stat.st_size, stat.st_mtime_ns))
    content = json.dumps([_VERSION, str(folder.resolve()), image_size, entries, contents])
    return cache_dir / hashlib.sha256(content.encode()).hexdigest()[:24]


# --- decode -----------------------------------------------------------------------------------------------------------


class _Decoding:
    """Files that are decoded into one array, which forked processes share."""

    def __init__(self, paths: Sequence[str], image_size: int | None, timeout_s: float) -> None:
        self.paths, self.image_size, self.timeout_s = paths, image_size, timeout_s
        first = self._decode(paths[0], {})
        self.shape = first.shape
        memory = mmap.mmap(-1, len(paths) * math.prod(self.shape))
        self.images = np.frombuffer(memory, dtype=np.uint8).reshape(len(paths), *self.shape)

    def fill(self, start: int) -> dict[str, str]:
        """Decode a chunk; returns its damaged files."""
        damaged: dict[str, str] = {}
        for index in range(start, min(start + _CHUNK, len(self.paths))):
            image = self._decode(self.paths[index], damaged)
            if image.shape != self.shape:
                raise DataError(
                    f"{self.paths[index]}: {image.shape[2]}x{image.shape[1]} pixels, but {Path(self.paths[0]).name} "
                    f"has {self.shape[2]}x{self.shape[1]}; set dataset.image_size to resize all images"
                )
            self.images[index] = image
        return damaged

    def _decode(self, path: str, damaged: dict[str, str]) -> Images:
        stopping.check()
        hanging.beat()
        with hanging.waiting(f"decoding {path}", timeout_s=self.timeout_s, setting="dataset.timeout_s"):
            return decode_whole(path, self.image_size, damaged)


_forked: _Decoding | None = None  # in a process that decodes


def _decode(
    paths: Sequence[str],
    image_size: int | None,
    num_threads: int,
    num_processes: int,
    timeout_s: float,
    progress: Callable[[bool], None],
) -> tuple[Images, dict[str, str]]:
    progress(True)
    decoding = _Decoding(paths, image_size, timeout_s)
    starts = range(0, len(paths), _CHUNK)
    executor: Executor
    if num_processes:
        executor = ProcessPoolExecutor(
            min(num_processes, len(starts)),
            mp_context=multiprocessing.get_context("fork"),
            initializer=_begin_forked,
            initargs=(decoding, os.getpid()),  # inherited, not pickled
        )
        fill = _fill_forked
    else:
        is_large = Path(paths[0]).stat().st_size > _SMALL_FILE_BYTES
        executor = ThreadPoolExecutor(max_workers=max(1, num_threads) if is_large else 1)
        fill = decoding.fill
    damaged: dict[str, str] = {}
    with executor:
        for found in executor.map(fill, starts):
            damaged |= found
            progress(True)
    progress(False)
    return decoding.images, damaged


def _begin_forked(decoding: _Decoding, parent: int) -> None:
    global _forked
    _forked = decoding
    stopping.exit_with_parent(parent)


def _fill_forked(start: int) -> dict[str, str]:
    assert _forked is not None
    return _forked.fill(start)


# --- cache ------------------------------------------------------------------------------------------------------------


def mapped(place: Path) -> Images:
    """Map the images of a cache into memory; changes of the array are private, as torch takes none that cannot change.

    Raises:
        OSError, ValueError, EOFError: there is no such cache, or it is cut.
    """
    images: Images = np.load(place.with_suffix(".npy"), mmap_mode="c")
    return images


def _read(place: Path) -> tuple[Images, dict[str, str]] | None:
    """Images and damaged files of a cache; None: there is none, or it is damaged."""
    file = place.with_suffix(".npy")
    try:
        entry = json.loads(place.with_suffix(".json").read_text())
        images = mapped(place)
        if entry["sha256"] == _sha256(images, entry["damaged"]):
            return images, entry["damaged"]
        reason = "wrong checksum"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    logger.warning("%s is damaged (%s); decoding the images again", file, reason)
    return None


def _write(place: Path, images: Images, damaged: dict[str, str]) -> bool:
    """Write a cache; returns whether that went well."""
    file, entry = place.with_suffix(".npy"), place.with_suffix(".json")
    temporary = [path.with_name(f".{path.name}.{os.getpid()}") for path in (file, entry)]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary[0].open("wb") as opened:
            npy.write_array_header_1_0(opened, npy.header_data_from_array_1_0(images))
            opened.write(images.reshape(-1).data)  # `np.save` may not notice that the disk is full
        temporary[1].write_text(json.dumps({"sha256": _sha256(images, damaged), "damaged": damaged}))
        temporary[0].replace(file)
        temporary[1].replace(entry)
    except OSError as error:
        logger.warning("cannot cache decoded images in %s (%s); every run will decode them", file.parent, error)
        for path in temporary:
            with contextlib.suppress(OSError):
                path.unlink()
        return False
    return True


def _sha256(images: Images, damaged: dict[str, str]) -> str:
    digest = hashlib.sha256(images.reshape(-1).data)
    digest.update(json.dumps([images.shape, damaged]).encode())
    return digest.hexdigest()
