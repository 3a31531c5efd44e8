"""Find the files of an image folder: splits, classes, images."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from esper.errors import DataError
from esper.images.fingerprint import Fingerprint, fingerprint_files
from esper.images.pixels import suffixes

__all__ = ["Listing", "described_suffixes", "find_images", "is_special", "list_classes", "list_folder", "walk"]

_MAX_KINDS = 5
"""Suffixes, or files, that a notice names."""


@dataclass(kw_only=True)
class Listing:
    """The files of an image folder.

    Attributes:
        folder: parent of the splits.
        classes: names, sorted.
        files: of each split that exists, the image files of each class.
        unread: how many other files there are of each suffix.
        special: what is left out because it is no regular file.
    """

    folder: Path
    classes: list[str]
    files: dict[str, list[list[os.DirEntry[str]]]]
    unread: Counter[str]
    special: list[str]

    @property
    def test(self) -> str:
        """The split that is the test set."""
        return "test" if "test" in self.files else "val"

    def fingerprint(self) -> Fingerprint:
        """Names of all files, sizes and contents."""
        parts = {
            f"{split}/{name}": [file.path for file in files]
            for split, classes in self.files.items()
            for name, files in zip(self.classes, classes, strict=True)
        }
        return fingerprint_files(parts, root=str(self.folder), test=self.test)

    def notices(self) -> list[str]:
        """What the user should know."""
        lines = []
        if self.unread:
            lines.append(f"{described_suffixes(self.unread)}; images among them must be converted")
        if self.special:
            named = ", ".join(os.path.relpath(path, self.folder) for path in self.special[:_MAX_KINDS])
            more = ", …" if len(self.special) > _MAX_KINDS else ""
            lines.append(f"left out, not regular files: {len(self.special)} ({named}{more})")
        return [f"dataset.data_dir={self.folder}: {line}" for line in lines]


def list_folder(folder: Path) -> Listing:
    """List the files of a folder with a subfolder for each split, and in that one for each class.

    Raises:
        DataError: a folder is missing, or a class has no images or is missing from a split.
    """
    splits, classes = _layout(folder)
    listing = Listing(folder=folder, classes=classes, files={}, unread=Counter(), special=[])
    for split in splits:
        listing.files[split], others, special = find_images(folder / split, classes)
        listing.unread += others
        listing.special += special
    return listing


def list_classes(folder: Path) -> list[str]:
    """Names of the subfolders, sorted; empty if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in _visible(folder) if entry.is_dir())


def find_images(folder: Path, classes: Sequence[str]) -> tuple[list[list[os.DirEntry[str]]], Counter[str], list[str]]:
    """List the image files of each class, sorted; subfolders are searched, links to folders are not.

    Returns:
        The files, how many others there are of each suffix, and the paths of pipes, devices and the like: to open one
        might take for ever.

    Raises:
        DataError: a class has no images.
    """
    found, unread, special = [], Counter[str](), list[str]()
    for name in classes:
        files, others = [], Counter[str]()
        for entry in walk(folder / name):
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
            if suffix in suffixes():
                if is_special(entry):
                    special.append(entry.path)
                else:
                    files.append(entry)
            elif not entry.is_dir():
                others[suffix] += 1
        if not files:
            contained = f"; {described_suffixes(others)}" if others else ""
            raise DataError(f"{folder / name}: contains no images{contained}; add some, or remove it from every split")
        # By the parts of the path: `a/b` before `a-b`.
        found.append(sorted(files, key=lambda entry: entry.path.split(os.sep)))  # noqa: PTH206
        unread += others
    return found, unread, special


def is_special(path: os.DirEntry[str] | Path) -> bool:
    """Whether it is there and neither a regular file nor a link to one: a pipe, a device, a folder."""
    if path.is_file():  # of most files the folder says so
        return False
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False  # a dangling link: reading it says what is wrong


def described_suffixes(unread: Counter[str]) -> str:
    """How many files of each suffix were not read."""
    kinds = sorted(unread, key=lambda suffix: (-unread[suffix], suffix))
    counts = [f"{unread[suffix]} {suffix or 'without'}" for suffix in kinds[:_MAX_KINDS]]
    more = ", …" if len(kinds) > _MAX_KINDS else ""
    return f"files not read, because of their suffixes: {unread.total()} ({', '.join(counts)}{more})"


def walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Yield the files below a folder; hidden ones are left out, and links to folders are not followed."""
    for entry in _visible(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path)
        else:
            yield entry


def _visible(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _layout(data_dir: Path) -> tuple[list[str], list[str]]:
    """Names of the splits that exist and of the classes, which must be the same in every split."""
    classes = list_classes(data_dir / "train")
    if not classes:
        raise DataError(f"dataset.data_dir={data_dir}: needs a folder train/ with a subfolder for each class")
    for name in classes:
        if name != os.fsencode(name).decode(errors="replace"):  # JSON cannot hold it
            raise DataError(f"dataset.data_dir={data_dir}: the name of the class {name!r} is not in UTF-8; rename it")
    splits = [name for name in ("train", "val", "test") if (data_dir / name).is_dir()]
    if len(splits) == 1:
        raise DataError(f"dataset.data_dir={data_dir}: needs a folder test/ or val/ beside train/")
    for split in splits[1:]:
        if unmatched := sorted({*classes} ^ {*list_classes(data_dir / split)}):
            raise DataError(
                f"dataset.data_dir={data_dir}: train/ and {split}/ have different classes ({unmatched[0]} is in only "
                "one of them); add or remove that folder"
            )
    return splits, classes
