"""A folder of images, one subfolder a class: decoded once and kept, or streamed.

    data_dir/train/<class>/*.jpg        and  data_dir/test/<class>/…  or  data_dir/val/<class>/…

With both, `test` is the test set and `val` is what controller and judge share; with `val` alone, that is the test set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from esper.configs import DatasetConfig
from esper.data.decode import decode_whole, unreadable
from esper.data.files import FileSet, classes_in, find_images
from esper.data.splits import ImageSet, Source
from esper.errors import DataError

__all__ = ["is_streamed", "load_imagefolder"]

MAX_MEMORY_BYTES = 8 * 2**30
"""Training images that take more than this, decoded, are streamed unless the setting says otherwise."""
_SMALL_FILE_BYTES = 8192
"""To decode a smaller file hardly leaves Python, where threads stand in each other's way."""
_CHUNK = 64
"""Images that a thread decodes at a time."""

logger = logging.getLogger(__name__)


def load_imagefolder(config: DatasetConfig, cache_dir: Path | None) -> Source:
    """Find an image folder's images, and load them where they are to be kept in memory.

    Args:
        config: the folder, the size of its images and where they are kept; `num_workers` threads decode large files.
        cache_dir: where decoded images are kept, under a name that changes with the files; None: nowhere.

    Raises:
        DataError: a folder is missing, a class has no images or is not in every split, or an image cannot be used.
    """
    data_dir = Path(config.data_dir).expanduser()
    names, classes = _layout(data_dir)
    if config.name == "imagenet" and (odd := [name for name in classes if not re.fullmatch(r"n\d{8}", name)]):
        raise DataError(
            f"dataset.data_dir={data_dir}: train/{odd[0]} is no ImageNet class (n and eight digits); rename the "
            "folders, or use dataset=imagefolder"
        )
    found = {name: list(find_images(data_dir / name, classes)) for name in names}
    sets: Mapping[str, ImageSet | FileSet]
    if is_streamed(config, num_images=sum(map(len, found["train"]))):
        sets = {name: _files(data_dir / name, files, config) for name, files in found.items()}
    else:
        sets = {name: _load_split(data_dir / name, files, config, cache_dir) for name, files in found.items()}
    shapes = {name: images.shape for name, images in sets.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"dataset.data_dir={data_dir}: splits differ in image size ({shapes}); set dataset.image_size")
    return Source(
        train=sets["train"],
        test=sets["test" if "test" in sets else "val"],
        class_names=tuple(classes),
        held_out=sets.get("val") if "test" in sets else None,
    )


def is_streamed(config: DatasetConfig, *, num_images: int) -> bool:
    """Whether images are decoded anew whenever they are needed, instead of kept on the device."""
    if config.storage != "auto" or config.image_size is None:
        return config.storage == "stream"
    return config.name == "imagenet" or 3 * config.image_size**2 * num_images > MAX_MEMORY_BYTES


def _layout(data_dir: Path) -> tuple[list[str], list[str]]:
    """The folders of splits that there are, and the classes, which all of them have."""
    classes = classes_in(data_dir / "train")
    if not classes:
        raise DataError(
            f"dataset.data_dir={data_dir}: there is no folder train/ in it, with a subfolder for each class"
        )
    names = [name for name in ("train", "val", "test") if (data_dir / name).is_dir()]
    if len(names) == 1:
        raise DataError(f"dataset.data_dir={data_dir}: beside train/ it needs a folder test/ or val/")
    for name in names[1:]:
        if lone := sorted({*classes} ^ {*classes_in(data_dir / name)}):
            raise DataError(
                f"dataset.data_dir={data_dir}: train/ and {name}/ have different classes ({lone[0]} is in one of them "
                "only); add or remove that folder"
            )
    return names, classes


def _files(folder: Path, found: list[list[os.DirEntry[str]]], config: DatasetConfig) -> FileSet:
    assert config.image_size is not None  # checked with the configuration
    begin = len(os.path.join(folder, ""))  # noqa: PTH118
    return FileSet(
        folder=folder,
        names=np.array([os.fsencode(entry.path[begin:]) for files in found for entry in files]),
        labels=_labels(found),
        image_size=config.image_size,
        canvas_size=config.canvas_size or round(config.image_size * 8 / 7),
    )


def _labels(found: list[list[os.DirEntry[str]]]) -> Tensor:
    return torch.arange(len(found)).repeat_interleave(torch.tensor([len(files) for files in found]))


def _load_split(
    folder: Path, found: list[list[os.DirEntry[str]]], config: DatasetConfig, cache_dir: Path | None
) -> ImageSet:
    files = [entry for files in found for entry in files]
    cached = cache_dir / f"{_digest(folder, files, config.image_size)}.safetensors" if cache_dir else None
    images = _read_cache(cached) if cached else None
    if images is None:
        images = _decode([entry.path for entry in files], config.image_size, config.num_workers)
        if cached:
            _write_cache(cached, images)
    return ImageSet(images, _labels(found))


def _digest(folder: Path, files: list[os.DirEntry[str]], image_size: int | None) -> str:
    """Name the decoded images by the files they come from: any file added, removed or changed gives another name."""
    entries, begin = [], len(os.path.join(folder, ""))  # noqa: PTH118
    for entry in files:
        try:
            stat = entry.stat()
        except OSError as error:  # a dangling link, say
            raise unreadable(entry.path, error) from None
        entries.append((entry.path[begin:], stat.st_size, stat.st_mtime_ns))
    content = json.dumps([str(folder.resolve()), image_size, entries])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def _decode(paths: list[str], image_size: int | None, num_workers: int) -> Tensor:
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

    num_threads = max(1, num_workers) if Path(paths[0]).stat().st_size > _SMALL_FILE_BYTES else 1
    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        for _ in pool.map(fill, (range(len(paths))[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK))):
            pass
    return images


def _read_cache(path: Path) -> Tensor | None:
    try:
        found = load_file(path)
        if found["sha256"].numpy().tobytes() == _sha256(found["images"]):
            return found["images"]
        reason = "its checksum is wrong"
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError) as error:
        reason = str(error)
    logger.warning("%s is damaged (%s); decoding the images again", path, reason)
    return None


def _write_cache(path: Path, images: Tensor) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    checksum = torch.frombuffer(bytearray(_sha256(images)), dtype=torch.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": images, "sha256": checksum}, aside)
        aside.replace(path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        logger.warning("cannot keep decoded images in %s (%s); they are decoded anew in every run", path.parent, error)
        with contextlib.suppress(OSError):
            aside.unlink()


def _sha256(images: Tensor) -> bytes:
    return hashlib.sha256(images.numpy().reshape(-1).data).digest()
