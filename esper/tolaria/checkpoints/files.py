"""Checkpoints on disk: a folder that is complete or not there.

    step-00000420/            the newest ones, from which a run goes on
    best-00000400/            the network of the epoch with the lowest validation loss
        model.safetensors     parameters and buffers of the grown network
        optimizer.safetensors optimizer state by parameter name, sums of the running epoch, random-number states
        state.json            counters, seeds, scaler
        manifest.json         schema, SHA-256 of each file, growth recipe, journal offset; written last

A folder is written aside, each file fsynced, then renamed. Loading verifies every hash; there is no pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from esper.contracts.recipe import Graft
from esper.errors import CheckpointError

__all__ = ["Snapshot", "find_checkpoints", "load", "prune", "save", "set_aside"]

SCHEMA = 1
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a checkpoint holds.

    Attributes:
        step: optimizer steps done.
        model: the network's state dict.
        optimizer: optimizer state, epoch sums and random-number states by name.
        state: JSON-able counters.
        recipe: what has grown, in order of birth.
        journal_offset: size in bytes of the journal when this was taken.
        digest: digest of the configuration it was trained with.
    """

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]
    recipe: Sequence[Graft]
    journal_offset: int
    digest: str


def save(folder: Path, snapshot: Snapshot, *, prefix: str) -> Path:
    """Write a checkpoint `<prefix>-<step>` (prefix step or best) into a folder of checkpoints; returns its path.

    Raises:
        CheckpointError: it cannot be written; what was there before is untouched.
    """
    target = folder / f"{prefix}-{snapshot.step:08d}"
    aside = folder / f".{target.name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        save_file(_plain(snapshot.model), aside / "model.safetensors")
        save_file(_plain(snapshot.optimizer), aside / "optimizer.safetensors")
        (aside / "state.json").write_text(json.dumps(dict(snapshot.state)))
        manifest = {
            "schema": SCHEMA,
            "step": snapshot.step,
            "digest": snapshot.digest,
            "journal_offset": snapshot.journal_offset,
            "recipe": [graft.entry() for graft in snapshot.recipe],
            "sha256": {name: _sha256(aside / name) for name in _FILES},
        }
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=2))
        for file in aside.iterdir():
            _fsync(file)
        _fsync(aside)
        if target.exists():  # the same step, taken up again with the same weights
            shutil.rmtree(target)
        aside.rename(target)
        _fsync(folder)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(f"cannot save {target}: {error}; earlier checkpoints are intact") from None
    return target


def load(path: Path) -> Snapshot:
    """Read a checkpoint and verify all of it.

    Raises:
        CheckpointError: it is missing, incomplete, damaged, or of another schema.
    """
    manifest = _manifest(path)
    if manifest.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} has schema {manifest.get('schema')}; this version of Esper reads {SCHEMA}")
    try:
        for name in _FILES:
            if _sha256(path / name) != manifest["sha256"][name]:
                raise CheckpointError(f"{path / name} is damaged: its SHA-256 is not the one in manifest.json")
        state = json.loads((path / "state.json").read_text())
        return Snapshot(
            step=manifest["step"],
            model=load_file(path / "model.safetensors"),
            optimizer=load_file(path / "optimizer.safetensors"),
            state=state,
            recipe=[Graft(**entry) for entry in manifest["recipe"]],
            journal_offset=manifest["journal_offset"],
            digest=manifest["digest"],
        )
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def find_checkpoints(folder: Path, *, prefix: str = "step") -> list[Path]:
    """The complete checkpoints in a folder, newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.glob(f"{prefix}-*") if (path / "manifest.json").is_file()]
    return sorted(found, key=lambda path: path.name, reverse=True)


def set_aside(folder: Path, *, after_step: int) -> None:
    """Move all checkpoints of later steps into `abandoned/`: a run that goes on from before them will make its own."""
    abandoned = folder / "abandoned"
    for path in find_checkpoints(folder) + find_checkpoints(folder, prefix="best"):
        if int(path.name.rpartition("-")[2]) > after_step:
            abandoned.mkdir(exist_ok=True)
            shutil.rmtree(abandoned / path.name, ignore_errors=True)
            path.rename(abandoned / path.name)


def prune(folder: Path, *, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints and the newest best one, and what broken saves left.

    Raises:
        CheckpointError: one cannot be removed.
    """
    for path in find_checkpoints(folder)[keep:] + find_checkpoints(folder, prefix="best")[1:]:
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise CheckpointError(f"cannot remove {path}: {error}; newer checkpoints are intact") from None
    for remains in folder.glob(".*-*"):
        shutil.rmtree(remains, ignore_errors=True)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not a checkpoint: it has no manifest.json") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / 'manifest.json'} is damaged: {error}") from None
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path / 'manifest.json'} is damaged: not an object")
    return manifest


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses channels-last strides; loading copies into tensors that have them.
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
