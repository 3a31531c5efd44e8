"""Folders that a refused command must not leave behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["left_as_it_was"]


@contextlib.contextmanager
def left_as_it_was(folder: Path, *, file: str | None = None) -> Iterator[None]:
    """Context manager: on an error, remove the folder and those above it if they are new and empty.

    Args:
        folder: it may be created inside.
        file: its name; if it is new and empty, it is removed too.
    """
    paths = [folder / file] if file else []
    new = [path for path in (*paths, folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):  # it is used, or was never made
                if path.is_dir():
                    path.rmdir()
                elif path.stat().st_size == 0:
                    path.unlink()
        raise
