"""The process of `ahead`, which decodes an image folder."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from pathlib import Path

from esper import stopping
from esper.configs import DatasetConfig
from esper.cores import num_cores
from esper.errors import EsperError
from esper.images.ahead import DECODED, DECODING
from esper.images.folder import decode_folder
from esper.images.listing import list_folder
from esper.images.storage import is_streamed

__all__ = ["main"]


def main() -> None:
    """Decode, and print progress and the result; without one the command decodes."""
    asked = json.loads(sys.argv[1])
    stopping.exit_with_parent(asked["parent"])
    config, cache_dir = DatasetConfig(**asked["config"]), Path(asked["cache_dir"])
    logging.disable()
    with contextlib.suppress(EsperError):
        listing = list_folder(Path(config.data_dir).expanduser())
        if is_streamed(config, num_images=sum(map(len, listing.files["train"]))):
            return
        decoded = decode_folder(config, listing, cache_dir, num_processes=num_cores(), progress=_print_progress)
        if None in decoded.places.values():  # the cache cannot be written, which the command finds and tells of
            return
        answer = {
            "folder": str(decoded.folder),
            "classes": decoded.classes,
            "counts": decoded.counts,
            "places": {split: str(place) for split, place in decoded.places.items()},
            "test": decoded.test,
            "parts": decoded.fingerprint.parts,
            "fingerprint_test": decoded.fingerprint.test,
            "notices": decoded.notices,
        }
        sys.stdout.write(json.dumps(answer))


def _print_progress(is_decoding: bool) -> None:
    os.write(1, DECODING if is_decoding else DECODED)
