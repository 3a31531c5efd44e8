"""What W&B wrote offline: the records of its `.wandb` files, which are a log of LevelDB with protocol buffers in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER, _FILE_HEADER = 32768, 7, 7


def segments(run_dir: Path) -> list[Path]:
    """The files of a run's processes, in the order in which they began."""
    return sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime_ns)


def rows(file: Path) -> list[dict[str, Any]]:
    """The rows of history in a file."""
    found = []
    for record in records(file):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return found


def records(file: Path) -> Iterator[Any]:
    """All records of a file."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = file.read_bytes()
    at, whole = _FILE_HEADER, b""
    while at + _HEADER <= len(content):
        if _BLOCK - at % _BLOCK < _HEADER:  # the rest of a block is padding
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # full, or the last of several
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""
