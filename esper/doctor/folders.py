"""What `esper doctor` checks of the folders that a run writes into."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from esper.doctor.finding import Finding, Subject, failed, not_used, ok, warning

__all__ = ["checkpoints", "filesystem", "outputs", "runs", "settings", "sqlite_files"]

_GIB = 2**30
_NO_SPACE_BYTES, _LITTLE_SPACE_BYTES = _GIB, 10 * _GIB
_NETWORK = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fhgfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "panfs",
        "smb3",
        "smbfs",
        "wekafs",
    }
)
_MAX_RUNS = 1000


def settings(subject: Subject) -> Finding:
    """Which run the settings make; and whether a folder of settings lies here that nobody reads."""
    from esper.configs.compose import conf_folder

    found = f"run {subject.run_dir}"
    mine = Path("conf").absolute()
    if any(mine.glob("*/*.yaml")) and mine.resolve() != conf_folder().resolve():
        return warning(f"{found}; {mine} is not read", "esper-train --config-dir conf …")
    return ok(found)


def outputs(subject: Subject) -> Finding:
    """Whether the outputs folder takes files, and how many still."""
    return _takes_files(subject.outputs_dir, "free some space, or start where there is more (outputs lies there)")


def checkpoints(subject: Subject) -> Finding:
    """The same of a folder for checkpoints."""
    folder = subject.config.checkpoint.checkpoint_dir
    if folder is None:
        return not_used("they go into the run's folder")
    return _takes_files(Path(folder).absolute(), "free some space, or set another checkpoint.checkpoint_dir")


def _takes_files(folder: Path, remedy: str) -> Finding:
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:  # permissions, quotas and read-only mounts all show here
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return failed(f"{folder}: cannot be written ({error.strerror or error})", remedy)
    free = shutil.disk_usage(place).free
    found = f"{folder}, {free / _GIB:.1f} GiB free"
    if free < _NO_SPACE_BYTES:
        return failed(found, remedy)
    return warning(found, remedy) if free < _LITTLE_SPACE_BYTES else ok(found)


def filesystem(subject: Subject) -> Finding:
    """SQLite's locks do not hold on network filesystems."""
    kind = _kind(subject.outputs_dir)
    shaky = {name: on for name, file in sqlite_files(subject).items() if (on := _kind(file.parent)) and _is_remote(on)}
    if shaky:
        listed = ", ".join(f"{name} is SQLite on {on}" for name, on in shaky.items())
        remedy = "tracking.uri and database.url: name a server, or a file on a local disk (sqlite:////tmp/mlflow.db)"
        return warning(f"{listed}: two writers may damage it", remedy)
    return ok(f"{kind or 'of unknown kind'}{', over the network' if _is_remote(kind) else ''}")


def sqlite_files(subject: Subject) -> dict[str, Path]:
    """The SQLite files that a run would use, by what they are."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    from esper.tracking import tracking_uri

    config, found = subject.config, {}
    urls = {"urza.db": config.database.url or f"sqlite:///{subject.outputs_dir / 'urza.db'}"}
    if config.tracking.name in ("mlflow", "both"):
        urls["mlflow.db"] = tracking_uri(config.tracking, outputs_dir=subject.outputs_dir)
    for name, url in urls.items():
        try:
            file = make_url(url).database if url.startswith("sqlite") else None
        except (ArgumentError, ValueError):
            continue
        if file:
            found[name] = Path(file).absolute()
    return found


def _kind(folder: Path) -> str:
    """The type of the filesystem that a folder lies on, or would lie on; empty where nobody knows."""
    import psutil

    folder = folder.resolve()
    mounts = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    return next((mounts[one] for one in (folder, *folder.parents) if one in mounts), "")


def _is_remote(kind: str) -> bool:
    return kind in _NETWORK or (kind.startswith("fuse.") and kind != "fuse.overlayfs")


def runs(subject: Subject) -> Finding:
    """How the runs stand that lie in the outputs folder: some may have been killed."""
    from esper.tracking.sync import is_locked

    files = sorted(subject.outputs_dir.glob("*/*/status.json"))[:_MAX_RUNS]
    if not files:
        return not_used(f"none in {subject.outputs_dir}")
    killed, num_going_on = [], 0
    for file in files:
        try:
            status = json.loads(file.read_text()).get("status")
            if is_locked(file.parent):
                num_going_on += 1
            elif status == "running":
                killed.append(file.parent.relative_to(subject.outputs_dir))
        except (OSError, ValueError, AttributeError):  # somebody else's, or about to be replaced
            continue
    found = f"{len(files)}, of which {num_going_on} going on"
    if (subject.run_dir / ".lock").exists() and is_locked(subject.run_dir):
        return warning(f"{found}; {subject.run_dir} too", "wait for it, or change a setting to get another run")
    if killed:
        named = ", ".join(map(str, killed[:2])) + (", …" if len(killed) > 2 else "")
        remedy = "give the same command again and it goes on; a .lock that lies there does not matter"
        return warning(f"{found}, {len(killed)} killed: {named}", remedy)
    return ok(found)
