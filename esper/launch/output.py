"""Standard output and error of a command, also where nobody reads them any more."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Any

from esper import first_line

__all__ = ["is_written", "keep_writing"]

_lost: set[int] = set()
"""Numbers of the streams that could not be written, while there was a reader."""


def keep_writing() -> None:
    """Let this process go on when its standard output or error cannot be written.

    Silently when nobody reads it any more, as with `| head -1`; when its disk is full, a warning says so once.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed by `>&-`: the next file that is opened would get its number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        original = getattr(sys, f"__{name}__")
        if getattr(sys, name) is original:  # else a program or a test has replaced it
            setattr(sys, name, _output(number, original))


def is_written() -> bool:
    """Whether all that was printed on standard output is written, or was for a reader that has gone."""
    sys.stdout.flush()
    return 1 not in _lost


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
    """A standard stream. What cannot be written is lost: all, once its reader or its terminal is gone."""

    def write(self, data: Any) -> int:
        first_line.end()
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                self._tell(error.strerror or str(error))
                return memoryview(data).nbytes
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        return memoryview(data).nbytes

    def _tell(self, reason: str) -> None:
        """Warn on the other stream, the first time, that lines are lost."""
        number = self.fileno()
        if number not in _lost:
            _lost.add(number)
            name = "standard output" if number == 1 else "standard error"
            with contextlib.suppress(OSError):  # its disk is full too
                os.write(3 - number, f"warning: cannot write {name}: {reason}; lines are lost\n".encode())
