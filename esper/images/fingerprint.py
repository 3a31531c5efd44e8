"""What a dataset holds, in a few digests: compared when a run is resumed, or its result shown.

Of files the names all count; size and content of up to 20,000 files, evenly spaced if there are more: files of up
to 64 KiB whole, of larger ones 16 KiB at the beginning, in the middle and at the end. Modification times do not count.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from esper.errors import DataError
from esper.images.decode import unreadable

__all__ = ["Fingerprint", "digest_of", "fingerprint_files"]

MAX_FILES = 20_000
_WHOLE_BYTES = 64 * 1024
_PIECE_BYTES = 16 * 1024
_NUM_THREADS = 16
"""Opening files waits for the disk or the network."""
_CHUNK = 64
"""Files that a thread reads at a time."""

Part = tuple[int, str, str]
"""Number of examples or files, digest of their names, digest of their contents; "" where there is nothing to digest."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a dataset holds.

    Attributes:
        parts: of each split, or of each class of each split (`train/cat`).
        test: the split that is the test set.
    """

    parts: Mapping[str, Part]
    test: str = "test"

    @property
    def digest(self) -> str:
        """16 hex digits."""
        return digest_of([json.dumps(self.entry(), sort_keys=True).encode()])

    def entry(self) -> dict[str, Any]:
        """The fields as JSON data."""
        return {"parts": dict(self.parts), "test": self.test}

    def changes(self, now: Fingerprint) -> list[str]:
        """What `now` holds instead, a few words for each part that differs; [] if nothing does."""
        changed = []
        for name in dict.fromkeys([*self.parts, *now.parts]):
            before, after = self.parts.get(name), now.parts.get(name)
            if before == after:
                continue
            if before is None or after is None:
                changed.append(f"{name} is {'new' if before is None else 'gone'}")
            elif before[0] != after[0]:
                changed.append(f"{name}: {before[0]:,} → {after[0]:,} {'files' if name == 'text' else 'examples'}")
            else:
                changed.append(f"{name}: other {'file names' if before[1] != after[1] else 'contents'}")
        if not changed and self.test != now.test:
            changed.append(f"{now.test}/ is the test set, was {self.test}/")
        return changed

    def trains_like(self, now: Fingerprint) -> bool:
        """Whether only test data differ: on them no step of a training depends."""
        return self.test == now.test and self._training_parts() == now._training_parts()

    def _training_parts(self) -> dict[str, Part]:
        return {name: part for name, part in self.parts.items() if name.partition("/")[0] != self.test}


def fingerprint_files(parts: Mapping[str, Sequence[str]], *, root: str, test: str) -> Fingerprint:
    """The fingerprint of files.

    Args:
        parts: paths of the files of each part, sorted; of images, those of each class of each split.
        root: folder of the dataset, of which all files' paths begin.
        test: the split that is the test set; "" if it is not a part.

    Raises:
        DataError: a file cannot be read, or is empty.
    """
    total, prefix = sum(map(len, parts.values())), len(os.path.join(root, ""))  # noqa: PTH118
    digested = {}
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for name, files in parts.items():
            names = digest_of([b"\0".join(os.fsencode(file[prefix:]) for file in files)])
            num_read = min(len(files), -(-len(files) * MAX_FILES // max(total, 1)))
            paths = [files[i * len(files) // num_read] for i in range(num_read)]
            chunks = [paths[start : start + _CHUNK] for start in range(0, num_read, _CHUNK)]
            digested[name] = (len(files), names, pool.map(_read_all, chunks))
        return Fingerprint(
            {name: (n, names, digest_of(read)) for name, (n, names, read) in digested.items()}, test=test
        )


def _read_all(paths: Sequence[str]) -> bytes:
    """Sizes and contents of files, digested."""
    digest = hashlib.blake2b()
    for path in paths:
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123
                size = os.fstat(file.fileno()).st_size
                digest.update(size.to_bytes(8, "little"))
                if size <= _WHOLE_BYTES:
                    digest.update(file.read())
                else:
                    for at in (0, (size - _PIECE_BYTES) // 2, size - _PIECE_BYTES):
                        digest.update(os.pread(file.fileno(), _PIECE_BYTES, at))
        except OSError as error:  # such as a dangling link
            raise unreadable(path, error) from None
        if size == 0:
            raise DataError(f"{path}: is empty; repair or remove it")
    return digest.digest()


def digest_of(content: Iterable[bytes]) -> str:
    """16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    for piece in content:
        digest.update(piece)
    return digest.hexdigest()
