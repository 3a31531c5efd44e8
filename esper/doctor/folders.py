"""Checks of the folders that a run reads and writes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from esper.doctor.finding import Finding, PlannedRun, failed, not_used, ok, warning

__all__ = ["checkpoints", "filesystem", "outputs", "runs", "settings", "sqlite_files"]

_GIB = 2**30
_MIN_SPACE_BYTES, _LOW_SPACE_BYTES = _GIB, 10 * _GIB
_MAX_RUNS = 1000


def settings(run: PlannedRun) -> Finding:
    """The run folder of these settings; no `conf` folder here is ignored."""
    from esper.configs.compose import conf_folder

    found = f"run {run.run_dir}"
    conf = Path("conf").absolute()
    if any(conf.glob("*/*.yaml")) and conf.resolve() != conf_folder().resolve():
        return warning(f"{found}; {conf} is ignored", "esper-train --config-dir conf …")
    return ok(found)


def outputs(run: PlannedRun) -> Finding:
    """The outputs folder is writable and has free space."""
    return _writable(run.outputs_dir, "free some space, or start in a folder with more: outputs is created there")


def checkpoints(run: PlannedRun) -> Finding:
    """The folder of checkpoints, if not the run folder, is writable and has free space."""
    folder = run.config.checkpoint.checkpoint_dir
    if folder is None:
        return not_used("saved in the run folder")
    return _writable(Path(folder).absolute(), "free some space, or set another checkpoint.checkpoint_dir")


def _writable(folder: Path, remedy: str) -> Finding:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing) as file:  # fails for permissions, quotas and read-only mounts
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return failed(f"{folder}: not writable ({error.strerror or error})", remedy)
    free = shutil.disk_usage(existing).free
    found = f"{folder}, {free / _GIB:.1f} GiB free"
    if free < _MIN_SPACE_BYTES:
        return failed(found, remedy)
    return warning(found, remedy) if free < _LOW_SPACE_BYTES else ok(found)


def filesystem(run: PlannedRun) -> Finding:
    """SQLite files are on a local filesystem, as locks are unreliable on network filesystems."""
    from esper.tracking.liveness import is_remote, mount_of

    kind = mount_of(run.outputs_dir)[0]
    kinds = {name: mount_of(file.parent)[0] for name, file in sqlite_files(run).items()}
    remote = [f"{name} is SQLite on {kind}" for name, kind in kinds.items() if is_remote(kind)]
    if remote:
        remedy = (
            "set tracking.uri and database.url to a server, or to a file on a local disk (sqlite:////tmp/mlflow.db)"
        )
        return warning(f"{', '.join(remote)}: concurrent writes may corrupt it", remedy)
    return ok(f"{kind or 'unknown'}{', over the network' if is_remote(kind) else ''}")


def sqlite_files(run: PlannedRun) -> dict[str, Path]:
    """Paths of the SQLite files that a run would use, by default name."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    from esper.configs.paths import sqlite_url
    from esper.tracking import tracking_uri

    config, files = run.config, {}
    urls = {"urza.db": config.database.url or sqlite_url(run.outputs_dir / "urza.db")}
    if config.tracking.name in ("mlflow", "both"):
        urls["mlflow.db"] = tracking_uri(config.tracking, outputs_dir=run.outputs_dir)
    for name, url in urls.items():
        try:
            file = make_url(url).database if url.startswith("sqlite") else None
        except (ArgumentError, ValueError):
            continue
        if file:
            files[name] = Path(file).absolute()
    return files


def runs(run: PlannedRun) -> Finding:
    """No run in the outputs folder was killed."""
    from esper.tracking.liveness import is_locked, killed_reason

    files = sorted(run.outputs_dir.glob("*/*/status.json"))[:_MAX_RUNS]
    if not files:
        return not_used(f"none in {run.outputs_dir}")
    killed, num_running = [], 0
    for file in files:
        if is_locked(file.parent):
            num_running += 1
        elif killed_reason(file.parent):
            killed.append(file.parent.relative_to(run.outputs_dir))
    found = f"{len(files)}, {num_running} of them running"
    if is_locked(run.run_dir):
        return warning(f"{found}, also {run.run_dir}", "wait for it, or change a setting to start another run")
    if killed:
        named = ", ".join(map(str, killed[:2])) + (", …" if len(killed) > 2 else "")
        remedy = "repeat the same command to resume; a leftover .lock is harmless"
        return warning(f"{found}, {len(killed)} killed: {named}", remedy)
    return ok(found)
