"""The images of a folder, decoded into memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from esper.configs import DatasetConfig
from esper.images.cache import Images, cache_place, load_images
from esper.images.fingerprint import Fingerprint
from esper.images.jpeg import describe_damage
from esper.images.listing import Listing

__all__ = ["Decoded", "decode_folder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A decoded folder.

    Attributes:
        folder: parent of the splits.
        classes: names, sorted.
        images: of each split, those of the first class first.
        counts: images of each class, of each split.
        places: cache of each split, see `cache_place`; None: there is none.
        test: the split that is the test set.
        fingerprint: what the folder holds.
        notices: what the user should know.
    """

    folder: Path
    classes: list[str]
    images: Mapping[str, Images]
    counts: Mapping[str, list[int]]
    places: Mapping[str, Path | None]
    test: str
    fingerprint: Fingerprint
    notices: list[str]


def decode_folder(
    config: DatasetConfig,
    listing: Listing,
    cache_dir: Path | None,
    *,
    num_processes: int = 0,
    progress: Callable[[bool], None] = lambda _: None,
) -> Decoded:
    """Decode the images of all splits, or read them from the cache.

    Args:
        config: image size; `num_workers` threads decode large files.
        listing: the files.
        cache_dir: where decoded images are cached; None: nowhere.
        num_processes, progress: see `load_images`.

    Raises:
        DataError: an image cannot be used.
    """
    found, notices = listing.fingerprint(), listing.notices()
    contents = json.dumps(found.entry())
    images, places, damaged = dict[str, Images](), dict[str, Path | None](), dict[str, str]()
    for split, classes in listing.files.items():
        files = [file for files in classes for file in files]
        place = cache_dir and cache_place(cache_dir, listing.folder / split, files, config.image_size, contents)
        images[split], others, is_cached = load_images(
            [file.path for file in files],
            place,
            image_size=config.image_size,
            num_threads=config.num_workers,
            timeout_s=config.timeout_s,
            num_processes=num_processes,
            progress=progress,
        )
        places[split] = place if is_cached else None
        damaged |= others
    if damaged:
        notices.append(describe_damage(damaged, folder=listing.folder))
    return Decoded(
        folder=listing.folder,
        classes=listing.classes,
        images=images,
        counts={split: list(map(len, classes)) for split, classes in listing.files.items()},
        places=places,
        test=listing.test,
        fingerprint=found,
        notices=notices,
    )
