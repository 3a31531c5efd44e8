"""Standard output and error of a command, also where nobody reads them any more."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

from esper import first_line

__all__ = ["keep_writing"]


def keep_writing() -> None:
    """Let this process go on, silently, when its standard output or error is closed, as by `| head -1`."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed by `>&-`: the next file that is opened would get its number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        original = getattr(sys, f"__{name}__")
        if getattr(sys, name) is original:  # else a program or a test has replaced it
            setattr(sys, name, _output(number, original))


def _output(number: int, original: io.TextIOWrapper | None) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(_Output(number, "wb", closefd=False))
    if original is None:
        return io.TextIOWrapper(buffer, encoding="utf-8", errors="replace")
    original.flush()
    return io.TextIOWrapper(
        buffer,
        encoding=original.encoding,
        errors=original.errors,
        line_buffering=original.line_buffering,
        write_through=original.write_through,
    )


class _Output(io.FileIO):
    """A standard stream. Once its reader or its terminal is gone, what is written is dropped."""

    def write(self, data: Any) -> int:
        first_line.end()
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        return memoryview(data).nbytes
