"""Memory in which one process hands decoded images to another."""

from __future__ import annotations

import os
import tempfile
from typing import IO

__all__ = ["nameless_file"]


def nameless_file() -> IO[bytes]:
    """A file in memory without a name: nothing is left of it when its processes are killed.

    It is no part of /dev/shm, which is small in containers. Where there is no such memory, it is a temporary file.
    """
    if hasattr(os, "memfd_create"):  # Linux
        return os.fdopen(os.memfd_create("esper-images"), "w+b")
    return tempfile.TemporaryFile()
