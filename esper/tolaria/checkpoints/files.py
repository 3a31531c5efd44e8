"""Checkpoint folders: write, read, find, delete. For how they are filled from a run, see `contents.py`.

    step-00000420/            for resuming; the newest ones are kept
    best-00000400/            the epoch with the lowest validation loss
    trunk-00000350/           the step at which the learning rate begins to decay
    before-00000390/          before a growth that is on trial, to go back to
        model.safetensors     parameters and buffers of the grown network
        optimizer.safetensors optimizer state by parameter name, metric sums, random-number states, EMA
        state.json            counters, seeds, scaler
        manifest.json         schema, SHA-256 of each file and its own, growth recipe, journal offset; written last

Saving is atomic: a temporary folder is written, fsynced and renamed; where it replaces another checkpoint, that is
renamed first, and `recover` completes what a kill between the two left. Loading verifies every hash. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from esper.configs.identity import CHECKPOINT_NAME
from esper.contracts.recipe import Graft
from esper.errors import CheckpointError, RunError, one_line
from esper.files import Count, as_umask_says, decode, decoder, json_object, read_bytes, read_json, sha256
from esper.tracking.files import GRAFT

__all__ = [
    "Snapshot",
    "find_checkpoints",
    "find_others",
    "has_checkpoints",
    "load",
    "load_newest",
    "move_to_abandoned",
    "recover",
    "remove_old",
    "save",
    "verify",
]

SCHEMA = 2
"""1 (version 0.1.0): the manifest has no checksum of its own."""
_PREFIXES = ("step", "best", "trunk", "before")
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_OURS = ("abandoned", "config.yaml", "data.json")
_MANIFEST = decoder(
    json_object(
        "Manifest",
        {
            "schema": int,
            "step": Count,
            "digest": str,
            "journal_offset": Count,
            "recipe": list[GRAFT],
            "sha256": dict[str, str],
        },
    )
)
_STATE = decoder(dict[str, Any])
"""See `contents.state_of` for what a run needs in it."""
_LEFTOVER = re.compile(rf"\.({CHECKPOINT_NAME.pattern})\.([0-9]+|old)", re.ASCII)
"""Temporary name of a checkpoint: `.NAME.PID` while it is written, `.NAME.old` while it is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The contents of a checkpoint.

    Attributes:
        step: optimizer steps done.
        model: state dict of the network.
        optimizer: tensors by name: optimizer state, metric sums, random-number states, EMA.
        state: the rest, as JSON data.
        recipe: the growth recipe.
        journal_offset: size of the journal in bytes when this was taken.
        digest: digest of the run's configuration.
    """

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]
    recipe: Sequence[Graft]
    journal_offset: int
    digest: str


def save(folder: Path, snapshot: Snapshot, *, prefix: str, guard: Callable[[], object] = lambda: None) -> Path:
    """Write the checkpoint `<prefix>-<step>` (prefix: step, best, trunk or before) into `folder`; returns its path.

    One that is there already and holds the same is left as it is. `guard` raises an error if nothing must be written in
    `folder`. It is called before anything is, and again before the checkpoint gets its name. What `folder` lies in has
    to be there: a run folder that was removed is not made again.

    Raises:
        CheckpointError: it cannot be written; earlier checkpoints are untouched.
    """
    target = folder / f"{prefix}-{snapshot.step:08d}"
    temporary = folder / f".{target.name}.{os.getpid()}"
    if target.exists() and _holds(target, snapshot):
        return target
    if name := _nan_in(snapshot):
        raise CheckpointError(f"{target} is not saved: {name} contains NaN; earlier checkpoints are intact")
    guard()
    try:
        folder.mkdir(exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, tensors in (("model", snapshot.model), ("optimizer", snapshot.optimizer)):
            save_file(_contiguous(tensors), temporary / f"{name}.safetensors")
            as_umask_says(temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps(dict(snapshot.state)))
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "step": snapshot.step,
            "digest": snapshot.digest,
            "journal_offset": snapshot.journal_offset,
            "recipe": [graft.entry() for graft in snapshot.recipe],
            "sha256": {name: sha256(temporary / name) for name in _FILES},
        }
        manifest["sha256"]["manifest.json"] = _manifest_sha256(manifest)
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2))
        for file in temporary.iterdir():
            _fsync(file)
        _fsync(temporary)
        guard()
        _move_into_place(temporary, target)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        guard()
        raise CheckpointError(f"cannot save {target}: {one_line(error)}; earlier checkpoints are intact") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def verify(path: Path) -> dict[str, Any]:
    """Compare a checkpoint's hashes; returns its manifest.

    Raises:
        CheckpointError: it is missing, incomplete, damaged, or of another schema.
    """
    try:
        content = read_bytes(path / "manifest.json")
        decode(content, _MANIFEST, where=str(path / "manifest.json"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not a checkpoint: it has no manifest.json") from None
    except RunError as error:
        raise CheckpointError(str(error)) from None
    manifest: dict[str, Any] = json.loads(content)
    if not 1 <= manifest["schema"] <= SCHEMA:
        raise CheckpointError(f"{path} has schema {manifest['schema']}; this version of Esper reads 1 to {SCHEMA}")
    if manifest["schema"] > 1 and manifest["sha256"].pop("manifest.json", "") != _manifest_sha256(manifest):
        raise CheckpointError(f"{path / 'manifest.json'} is damaged: its SHA-256 differs")
    for name in _FILES:
        try:
            is_same = sha256(path / name) == manifest["sha256"].get(name)
        except (OSError, RunError) as error:
            raise CheckpointError(f"{path} is damaged: {name}: {one_line(error)}") from None
        if not is_same:
            raise CheckpointError(f"{path / name} is damaged: its SHA-256 differs from manifest.json")
    return manifest


def load(path: Path) -> Snapshot:
    """Read a checkpoint and verify its hashes.

    Raises:
        CheckpointError: it is missing, incomplete, damaged, or of another schema.
    """
    manifest = verify(path)
    try:
        state: dict[str, Any] = read_json(path / "state.json", _STATE)
        saved = Snapshot(
            step=manifest["step"],
            model=load_file(path / "model.safetensors"),
            optimizer=load_file(path / "optimizer.safetensors"),
            state=state,
            recipe=[Graft(**entry) for entry in manifest["recipe"]],
            journal_offset=manifest["journal_offset"],
            digest=manifest["digest"],
        )
    except (OSError, RunError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {one_line(error)}") from None
    if name := _nan_in(saved):
        raise CheckpointError(f"{path} is damaged: {name} contains NaN")
    return saved


def load_newest(paths: Sequence[Path]) -> tuple[Path, Snapshot]:
    """Read the newest checkpoint, the first of the paths.

    Unlike in resuming, an older one does not replace it: that is another network than the one that is asked for.

    Raises:
        CheckpointError: it does not load; which older one does, and what to do.
    """
    try:
        return paths[0], load(paths[0])
    except CheckpointError as error:
        older = next(filter(_loads, paths[1:]), None)
        remedy = f"train on from {older.name}: checkpoint.resume_from={older}" if older else "no older checkpoint loads"
        raise CheckpointError(f"{error}; {remedy}") from None


def load_given(path: Path) -> Snapshot:
    """Read the checkpoint that the user named.

    Raises:
        CheckpointError: it does not load; which other one of its run does.
    """
    try:
        return load(path)
    except CheckpointError as error:
        other = next((one for one in find_checkpoints(path.parent) if one != path and _loads(one)), None)
        raise CheckpointError(f"{error}; {f'give {other}' if other else 'no other one there loads'}") from None


def find_checkpoints(folder: Path, *, prefix: str = "step", complete: bool = True) -> list[Path]:
    """The checkpoints in a folder, newest first; without `complete`, those that lost their manifest too."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _is_named(path.name, prefix) and path.is_dir()]
    return sorted(
        (path for path in found if not complete or (path / "manifest.json").is_file()), key=_step, reverse=True
    )


def has_checkpoints(folder: Path) -> bool:
    """Whether there is a checkpoint of any kind."""
    return any(find_checkpoints(folder, prefix=prefix) for prefix in _PREFIXES)


def find_others(folder: Path) -> list[str]:
    """Names in a checkpoint folder that are not Esper's, sorted; without hidden ones."""
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(name for name in names if name not in _OURS and not CHECKPOINT_NAME.fullmatch(name))


def move_to_abandoned(folder: Path, *, after_step: int, undone: Path | None = None) -> None:
    """Move the checkpoints of later steps into `abandoned/`: a run that resumes at `after_step` writes them again.

    Also the one at `undone`, which was saved at that step after growth that is undone.
    """
    abandoned = folder / "abandoned"
    for path in [path for prefix in _PREFIXES for path in find_checkpoints(folder, prefix=prefix, complete=False)]:
        if _step(path) > after_step or path == undone:
            abandoned.mkdir(exist_ok=True)
            shutil.rmtree(abandoned / path.name, ignore_errors=True)
            path.rename(abandoned / path.name)


def recover(folder: Path) -> None:
    """Complete what a process that was killed while it saved left under a temporary name, if it loads."""
    for leftover, name in _leftovers(folder):
        if not (folder / name).exists() and _loads(leftover):
            leftover.rename(folder / name)


def remove_old(folder: Path, *, keep: int, is_on_trial: bool = False) -> None:
    """Remove all but the `keep` newest checkpoints, the newest best one and the trunk, and leftovers of failed saves.

    The newest one that loads is kept in any case. Those before growth are kept like others while growth is on trial,
    else removed.

    Raises:
        CheckpointError: a checkpoint cannot be removed.
    """
    for prefix, num_kept in (dict.fromkeys(_PREFIXES, 1) | {"step": keep, "before": keep * is_on_trial}).items():
        paths = find_checkpoints(folder, prefix=prefix)
        kept, old = paths[:num_kept], paths[num_kept:]
        if old and num_kept and not any(map(_loads, kept)):
            old.remove(next(filter(_loads, old), old[0]))
        for path in old:
            hidden = path.with_name(f".{path.name}.old")  # a kill in mid-removal leaves no half under its name
            try:
                path.rename(hidden)
                shutil.rmtree(hidden)
            except OSError as error:
                raise CheckpointError(f"cannot remove {path}: {error}; newer checkpoints are intact") from None
    for leftover, name in _leftovers(folder):
        if (folder / name).exists() or not _loads(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


def _move_into_place(temporary: Path, target: Path) -> None:
    """Rename a complete checkpoint to its name; what has that name is removed afterwards."""
    old = target.with_name(f".{target.name}.old")
    if target.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    _fsync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _holds(path: Path, snapshot: Snapshot) -> bool:
    """Whether a checkpoint loads and has the contents of a snapshot, apart from times and the journal's size."""
    try:
        saved = load(path)
    except CheckpointError:
        return False
    return (
        (saved.step, saved.digest, saved.recipe) == (snapshot.step, snapshot.digest, list(snapshot.recipe))
        and _untimed(saved.state) == _untimed(snapshot.state)
        and _are_equal(saved.model, snapshot.model)
        and _are_equal(_without_sums(saved), _without_sums(snapshot))
    )


def _nan_in(snapshot: Snapshot) -> str | None:
    tensors = [*snapshot.model.items(), *snapshot.optimizer.items()]
    return next((name for name, tensor in tensors if tensor.is_floating_point() and tensor.isnan().any()), None)


def _untimed(state: Mapping[str, Any]) -> str:
    training = {name: value for name, value in state.get("training", {}).items() if not name.endswith("_seconds")}
    return json.dumps({**state, "training": training}, sort_keys=True)


def _without_sums(snapshot: Snapshot) -> dict[str, Tensor]:
    # A new epoch sets them to zero before its first step.
    is_new_epoch = snapshot.state.get("training", {}).get("step") == 0
    return {n: t for n, t in snapshot.optimizer.items() if not (is_new_epoch and n.startswith("sums|"))}


def _are_equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and a[name].equal(b[name].cpu()) for name in a)


def _is_named(name: str, prefix: str) -> bool:
    match = CHECKPOINT_NAME.fullmatch(name)
    return match is not None and match[1] == prefix


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _leftovers(folder: Path) -> list[tuple[Path, str]]:
    """Checkpoints under a temporary name, and the names that they are for; of one name, the newer one first."""
    found = [(path, _LEFTOVER.fullmatch(path.name)) for path in sorted(folder.glob(".*"))]
    return [(path, match[1]) for path, match in found if match]


def _loads(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses channels-last strides; `load_state_dict` copies into tensors that have them.
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content without this entry, however it is laid out."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
