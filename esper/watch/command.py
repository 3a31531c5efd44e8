"""The command `esper watch`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from esper.errors import RunError
from esper.watch.server import WatchServer

__all__ = ["main"]


def main(folder: Path, *, port: int) -> int:
    """Serve a page over the runs below a folder until Ctrl-C.

    Raises:
        RunError: there is no such folder, or the port cannot be used.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder; name the one of an experiment, or the one above, such as outputs")
    try:
        server = WatchServer(folder, port=port)
    except OSError as error:
        raise RunError(f"--port {port}: {error.strerror or error}; name another, or 0 for any that is free") from None
    with server, contextlib.suppress(KeyboardInterrupt):
        sys.stdout.write(f"{server.address}\nOnly from this machine, read-only; Ctrl-C ends it.\n")
        sys.stdout.flush()
        server.serve_forever()
    return 0
