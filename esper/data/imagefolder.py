"""A folder of images, one subfolder a class, decoded once and kept.

    data_dir/train/<class>/*.jpg        and  data_dir/test/<class>/…  or  data_dir/val/<class>/…

With both, `test` is the test set and `val` is what controller and judge share; with `val` alone, that is the test set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from esper.data.splits import ImageSet, Source
from esper.errors import DataError

__all__ = ["load_imagefolder"]

logger = logging.getLogger(__name__)


def load_imagefolder(data_dir: Path, *, image_size: int | None, num_workers: int, cache_dir: Path | None) -> Source:
    """Load an image folder as RGB images.

    Args:
        data_dir: the folder.
        image_size: shorter side is resized to this, then the centre is cropped; None: all images have one size.
        num_workers: threads that decode.
        cache_dir: where decoded images are kept, under a name that changes with the files; None: nowhere.

    Raises:
        DataError: a folder is missing, a class has no images or is not in every split, or an image cannot be used.
    """
    classes = _classes(data_dir / "train")
    if not classes:
        raise DataError(
            f"dataset.data_dir={data_dir}: there is no folder train/ in it, with a subfolder for each class"
        )
    names = [name for name in ("train", "val", "test") if (data_dir / name).is_dir()]
    if len(names) == 1:
        raise DataError(f"dataset.data_dir={data_dir}: beside train/ it needs a folder test/ or val/")
    for name in names[1:]:
        if lone := sorted({*classes} ^ {*_classes(data_dir / name)}):
            raise DataError(
                f"dataset.data_dir={data_dir}: train/ and {name}/ have different classes ({lone[0]} is in one of them "
                "only); add or remove that folder"
            )
    sets = {name: _load_split(data_dir / name, classes, image_size, num_workers, cache_dir) for name in names}
    shapes = {name: tuple(images.images.shape[1:]) for name, images in sets.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"dataset.data_dir={data_dir}: splits differ in image size ({shapes}); set dataset.image_size")
    test = sets.get("test", sets.get("val"))
    assert test is not None
    return Source(
        train=sets["train"],
        test=test,
        class_names=tuple(classes),
        held_out=sets.get("val") if "test" in sets else None,
    )


def _classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def _load_split(
    folder: Path, classes: list[str], image_size: int | None, num_workers: int, cache_dir: Path | None
) -> ImageSet:
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in IMG_EXTENSIONS
    ]
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    for name, count in zip(classes, torch.bincount(labels, minlength=len(classes)).tolist(), strict=True):
        if count == 0:
            raise DataError(
                f"{folder / name}: no images in it ({', '.join(IMG_EXTENSIONS)}); add some, or remove the folder from "
                "every split"
            )
    cached = cache_dir / f"{_digest(folder, files, image_size)}.safetensors" if cache_dir else None
    images = _read_cache(cached) if cached else None
    if images is None:
        images = _decode([path for path, _ in files], image_size, num_workers)
        if cached:
            _write_cache(cached, images)
    return ImageSet(images, labels)


def _digest(folder: Path, files: list[tuple[Path, int]], image_size: int | None) -> str:
    """Name the decoded images by the files they come from: any file added, removed or changed gives another name."""
    entries = []
    for path, _ in files:
        try:
            stat = path.stat()
        except OSError as error:  # a dangling link, say
            raise _unreadable(path, error) from None
        entries.append((str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns))
    content = json.dumps([str(folder.resolve()), image_size, entries])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def _decode(paths: list[Path], image_size: int | None, num_workers: int) -> Tensor:
    first = _decode_one(paths[0], image_size)
    images = torch.empty((len(paths), *first.shape), dtype=torch.uint8)

    def fill(index: int) -> None:
        image = _decode_one(paths[index], image_size)
        if image.shape != first.shape:
            raise DataError(
                f"{paths[index]}: {image.shape[2]}x{image.shape[1]} pixels, but {paths[0].name} has "
                f"{first.shape[2]}x{first.shape[1]}; set dataset.image_size to resize all images"
            )
        images[index] = image

    with ThreadPoolExecutor(max_workers=max(1, num_workers)) as pool:
        for _ in pool.map(fill, range(len(paths)), chunksize=256):
            pass
    return images


def _decode_one(path: Path, image_size: int | None) -> Tensor:
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: Pillow, of PNGs
        raise _unreadable(path, error) from None
    if image_size is not None:
        scale = image_size / min(image.size)
        width, height = (max(image_size, round(side * scale)) for side in image.size)
        left, top = (width - image_size) // 2, (height - image_size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + image_size, top + image_size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a readable image ({error}); mend or remove it")


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
