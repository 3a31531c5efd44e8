"""Files and folders that a refused command must not leave behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path

__all__ = ["accept", "also_restore", "left_as_it_was", "removed_if_empty", "restored_if_refused", "restorer"]

_restorers: ContextVar[list[Callable[[], None]]] = ContextVar("restorers")


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


@contextlib.contextmanager
def removed_if_empty(folder: Path, *, below: Path) -> Iterator[None]:
    """Context manager: on an error, remove the folder and those above it, up to `below`, as far as they are empty."""
    try:
        yield
    except BaseException:
        for path in (folder, *folder.parents):
            if below not in path.parents:
                break
            with contextlib.suppress(OSError):  # it holds something, or is gone
                path.rmdir()
        raise


def restorer(files: Iterable[Path]) -> Callable[[], None]:
    """A function that makes files what they are now, and removes those of their folders that are new and empty."""
    contents = {file: file.read_bytes() if file.is_file() else None for file in files}
    new = {folder for file in contents for folder in file.parents if not folder.exists()}

    def restore() -> None:
        for file, content in contents.items():
            with contextlib.suppress(OSError):
                if content is None:
                    file.unlink(missing_ok=True)
                elif not file.is_file() or file.read_bytes() != content:
                    file.write_bytes(content)
        for folder in sorted(new, reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()

    return restore


@contextlib.contextmanager
def restored_if_refused() -> Iterator[None]:
    """Context manager: if the command ends with an error before it calls `accept`, restore what it named."""
    token = _restorers.set([])
    try:
        yield
    except BaseException:
        for restore in reversed(_restorers.get()):
            restore()
        raise
    finally:
        _restorers.reset(token)


def also_restore(files: Iterable[Path]) -> None:
    """Name files that the command is about to write, inside `restored_if_refused`."""
    _restorers.get([]).append(restorer(files))


def accept() -> None:
    """Keep what the command has written: it was not refused."""
    _restorers.get([]).clear()
