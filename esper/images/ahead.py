"""A process that decodes an image folder while the command imports torch.

It fills the cache of decoded images, and says where they are. Whatever goes wrong there, such as a damaged file or
a full disk, is found and told by the command itself, which then decodes once more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from esper import hanging, stopping
from esper.configs import DatasetConfig
from esper.images.storage import is_streamed

if TYPE_CHECKING:
    from esper.images.folder import Decoded

__all__ = ["DECODED", "DECODING", "decoding_ahead", "take"]

DECODING, DECODED = b"\0", b"\1"
"""What the process prints before and after some files, and after the last of a split; JSON has no such characters."""
_DATASETS = ("imagefolder", "imagenet")
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv.pop(1)); from esper.images.ahead_process import main; main()"
)
_POLL_S = 0.2
_reader: _Reader | None = None

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def decoding_ahead(config: DatasetConfig, cache_dir: Path) -> Iterator[None]:
    """Context manager: start decoding now, if this is an image folder that is kept in memory; `take` has the result.

    Args:
        config: the dataset; with `num_workers=0` nothing is decoded ahead.
        cache_dir: where decoded images are cached.
    """
    global _reader
    is_folder = config.num_workers > 0 and config.name in _DATASETS
    if not is_folder or is_streamed(config, num_images=0) or _reader is not None:
        yield
        return
    reader = _reader = _Reader(config, cache_dir)
    try:
        yield
    finally:
        _reader = None
        reader.close()


def take(config: DatasetConfig, cache_dir: Path | None) -> Decoded | None:
    """Wait for what is decoded ahead; None: nothing is, of this folder, or something went wrong."""
    global _reader
    reader = _reader
    if reader is None or (reader.config, reader.cache_dir) != (config, cache_dir):
        return None
    _reader = None
    return reader.result()


class _Reader:
    def __init__(self, config: DatasetConfig, cache_dir: Path) -> None:
        self.config, self.cache_dir = dataclasses.replace(config), cache_dir
        asked = json.dumps({"config": dataclasses.asdict(config), "cache_dir": str(cache_dir), "parent": os.getpid()})
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                _START,
                json.dumps([path for path in sys.path if isinstance(path, str)]),
                asked,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C reaches only the command, which then ends this
        )

    def result(self) -> Decoded | None:
        """See `take`."""
        from esper.images.cache import mapped  # lazily: the process starts before this one imports what it needs
        from esper.images.fingerprint import Fingerprint
        from esper.images.folder import Decoded

        received = self._read()
        self.close()
        if self._process.returncode != 0:
            logger.warning("the process that decodes images ahead has failed; they are decoded now")
        try:
            answer = json.loads(received)
            places = {split: Path(place) for split, place in answer["places"].items()}
            return Decoded(
                folder=Path(answer["folder"]),
                classes=answer["classes"],
                images={split: mapped(place) for split, place in places.items()},
                counts=answer["counts"],
                places=places,
                test=answer["test"],
                fingerprint=Fingerprint(
                    {name: (n, names, contents) for name, (n, names, contents) in answer["parts"].items()},
                    test=answer["fingerprint_test"],
                ),
                notices=answer["notices"],
            )
        except (OSError, EOFError, ValueError):
            return None

    def _read(self) -> bytes:
        """What the process prints; b"" if some files take too long."""
        assert self._process.stdout is not None
        file, received, deadline_s = self._process.stdout.fileno(), b"", math.inf
        while time.monotonic() < deadline_s:
            stopping.check()
            if not select.select([file], [], [], _POLL_S)[0]:
                continue
            hanging.beat()
            if not (piece := os.read(file, 2**16)):
                self._process.wait()
                return received
            # To list a large folder, and to read or write its cache, may take longer.
            deadline_s = time.monotonic() + self.config.timeout_s if piece.endswith(DECODING) else math.inf
            received += piece.replace(DECODING, b"").replace(DECODED, b"")
        return b""

    def close(self) -> None:
        """End the process, and what it has forked; safe to call twice."""
        assert self._process.stdout is not None
        self._process.stdout.close()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for file in self.cache_dir.glob(f".*.{self._process.pid}"):
                with contextlib.suppress(OSError):
                    file.unlink()
