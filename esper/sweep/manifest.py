"""A sweep on disk: each member's frozen configuration, its job, and the job's outcome.

outputs/<experiment>/.sweep/       readable by its owner only
launcher.json                    the launcher of the last launch, and its options
<member>/config.yaml             frozen at submission; the job runs it, however often it is requeued
<member>/member.json             overrides, working directory, the runs that an arm is measured against
<member>/job.json                the job's queue and id
<member>/began                   exists once the job has begun
<member>/outcome.json            how the job ended, unless it was killed
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from esper.configs import TolariaConfig
from esper.configs.load import load_config, to_yaml
from esper.errors import RunError, WriteError
from esper.files import Number, decoder, json_object, read_json, write_atomically
from esper.tracking.files import read_members
from esper.tracking.liveness import recorded_status

__all__ = [
    "Job",
    "Member",
    "all_members",
    "freeze",
    "labels",
    "launcher_file",
    "launcher_of",
    "members_of",
    "require_private",
    "write_launcher",
]

_OF_EARLIER_JOBS = ("job.json", "began", "outcome.json")
_MEMBER = decoder(json_object("Member", {"overrides": list[str], "cwd": str, "siblings": dict[str, str]}))
_ID = Annotated[str, Field(pattern=r"^\d{1,10}(_\d{1,10})?(@\d{1,12}\.\d\d)?$")]
_JOB = decoder(json_object("Job", {"queue": str, "id": _ID}, extra="forbid"))
_STATUSES = Literal["finished", "failed", "interrupted", "lost"]
_OUTCOME = decoder(json_object("Outcome", {"status": _STATUSES, "reason": str, "metric": Number | None}))
_LAUNCHER = decoder(json_object("Launcher", {"queue": str, "options": dict[str, Any]}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A member's job.

    Attributes:
        queue: name of its queue.
        id: its id there: ARRAY_INDEX in SLURM, PID@CREATION_TIME on this machine.
    """

    queue: str
    id: str

    @property
    def short_id(self) -> str:
        """The id as it is shown: without the creation time."""
        return self.id.partition("@")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One run of a sweep.

    Attributes:
        sweep_dir: the sweep's folder, which holds the run folders.
        name: name of the run and of its folder.
        overrides: the run's command-line overrides.
        cwd: working directory of the command; relative paths start there.
        siblings: names of the runs that the arm of a comparison is measured against, by arm.
        has_job: whether a job of a queue runs it, not the process of `esper-train -m` itself.
    """

    sweep_dir: Path
    name: str
    overrides: tuple[str, ...]
    cwd: str
    siblings: Mapping[str, str]
    has_job: bool = True

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return self.sweep_dir / self.name

    @property
    def folder(self) -> Path:
        """The member's folder in `.sweep`."""
        return self.sweep_dir / ".sweep" / self.name

    @property
    def files(self) -> list[Path]:
        """The files that freezing it writes or removes."""
        return [self.folder / name for name in ("config.yaml", "member.json", *_OF_EARLIER_JOBS)]

    @classmethod
    def read(cls, folder: Path) -> Member:
        """Read a member from its folder.

        Raises:
            RunError: member.json is missing or damaged, or somebody else could have written in the folder.
        """
        folder = folder.absolute()
        require_private(folder.parent)
        require_private(folder, with_content=True)
        content = _read(folder / "member.json", _MEMBER, remedy="run the sweep's command again")
        if content is None:
            raise RunError(f"{folder / 'member.json'} is missing; run the sweep's command again")
        return cls(
            sweep_dir=folder.parents[1],
            name=folder.name,
            overrides=tuple(content["overrides"]),
            cwd=content["cwd"],
            siblings=content["siblings"],
        )

    def config(self) -> TolariaConfig:
        """The configuration that was frozen at submission."""
        return load_config(self.folder / "config.yaml", may_import=True)

    def job(self) -> Job | None:
        """The last job that it was submitted as.

        Raises:
            RunError: job.json is damaged.
        """
        content = _read(self.folder / "job.json", _JOB, remedy="remove it if its job has ended")
        return Job(**content) if content else None

    def set_job(self, job: Job) -> None:
        """Record the member's job."""
        _write(self.folder / "job.json", dataclasses.asdict(job))

    @property
    def began(self) -> bool:
        """Whether the job has begun, at least once."""
        return (self.folder / "began").exists()

    def begin(self) -> None:
        """Record that the job has begun, and remove the outcome of an earlier attempt."""
        (self.folder / "began").touch()
        (self.folder / "outcome.json").unlink(missing_ok=True)

    def outcome(self) -> dict[str, Any]:
        """How the job ended: status, reason and metric; {} while it has not, or if it was killed.

        Where outcome.json is damaged, the run's own status tells.
        """
        try:
            return _read(self.folder / "outcome.json", _OUTCOME, remedy="") or {}
        except RunError:
            return {}

    def end(self, status: str, *, reason: str = "", metric: float | None = None) -> None:
        """Record how the job ended: finished, failed, interrupted or lost."""
        _write(self.folder / "outcome.json", {"status": status, "reason": reason, "metric": metric})

    def result(self) -> dict[str, Any] | None:
        """The run's result if it has finished."""
        try:
            status = recorded_status(self.run_dir)
        except RunError:
            return None
        return status["result"] if status and status["status"] == "finished" else None


def require_private(folder: Path, *, with_content: bool = False) -> None:
    """Check that nobody else can have written in a folder of a sweep: what lies there is run, and unpickled by SLURM.

    Args:
        folder: must be a folder of this user, no link, and writable by nobody else.
        with_content: also check that what it holds is this user's, and no link.

    Raises:
        RunError: it is not so.
    """
    try:
        found = [(folder, folder.lstat())]
        for path in folder.iterdir() if with_content else ():
            with contextlib.suppress(FileNotFoundError):  # a temporary file, of what a job just recorded
                found.append((path, path.lstat()))
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.strerror or error}") from None
    for path, is_like in found:
        problem = ""
        if stat.S_ISLNK(is_like.st_mode):
            problem = "is a link"
        elif is_like.st_uid != os.geteuid():
            problem = f"belongs to another user ({is_like.st_uid})"
        elif path == folder and is_like.st_mode & 0o022:
            problem = "is writable by others"
        if problem:
            raise RunError(
                f"{path} {problem}, so its jobs may not be yours; look at what it holds, then remove it or make it "
                "yours alone (chmod go-w), and run the sweep's command again"
            )


def freeze(member: Member, config: TolariaConfig) -> None:
    """Write the configuration that the member's job will run, and remove the records of earlier jobs.

    Raises:
        RunError: a folder cannot be written, or somebody else could have written in it.
    """
    sweep_folder = member.folder.parent
    for folder in (sweep_folder, member.folder):
        _make_private(folder)
        require_private(folder)
    for name in _OF_EARLIER_JOBS:
        (member.folder / name).unlink(missing_ok=True)
    write_atomically(member.folder / "config.yaml", to_yaml(config))
    content = {"overrides": list(member.overrides), "cwd": member.cwd, "siblings": dict(member.siblings)}
    _write(member.folder / "member.json", content)


def members_of(sweep_dir: Path) -> list[Member]:
    """The members of a sweep, in the order of their overrides.

    Raises:
        RunError: no sweep was launched there.
    """
    folders = [path.parent for path in (sweep_dir.absolute() / ".sweep").glob("*/member.json")]
    if not folders:
        raise RunError(
            f"{sweep_dir}: no sweep was launched there with -m hydra/launcher=...; give its folder, usually "
            "outputs/EXPERIMENT; to resume a sweep without a launcher, repeat its command"
        )
    return sorted(map(Member.read, folders), key=_sort_key)


def all_members(sweep_dir: Path) -> list[Member]:
    """The members of any sweep, also of one without jobs; of one that searches, the runs that there are.

    Raises:
        RunError: no sweep was launched there.
    """
    sweep_dir = sweep_dir.absolute()
    with_jobs = members_of(sweep_dir) if (sweep_dir / ".sweep").is_dir() else []
    named: Mapping[str, Sequence[str]] = read_members(sweep_dir)
    if is_search(sweep_dir):
        named = {journal.parent.name: [] for journal in sweep_dir.glob("*/journal.jsonl")}
    others = [
        Member(sweep_dir=sweep_dir, name=name, overrides=tuple(overrides), cwd="", siblings={}, has_job=False)
        for name, overrides in named.items()
        if not (sweep_dir / ".sweep" / name).is_dir()
    ]
    if not with_jobs and not others:
        raise RunError(f"{sweep_dir}: no sweep was launched there with -m; give its folder, usually outputs/EXPERIMENT")
    return sorted((*with_jobs, *others), key=_sort_key)


def is_search(sweep_dir: Path) -> bool:
    """Whether a sweep chooses its runs as it goes, so that more may be added."""
    return (sweep_dir / "multirun.yaml").is_file() and not read_members(sweep_dir)  # the file is Hydra's, of any sweep


def _sort_key(member: Member) -> list[tuple[int, str]]:
    """Sorts by overrides, with `rng_seed=2` before `rng_seed=10`."""
    words = re.split(r"(\d+)", " ".join(member.overrides))
    return [(int(word), "") if word.isdecimal() else (0, word) for word in words]


def labels(members: Sequence[Member]) -> dict[str, str]:
    """Short labels for tables, by name: the overrides that the members do not share.

    Where that is empty or not unique, the label is the name.
    """
    counts = Counter(override for member in members for override in set(member.overrides))
    short = {
        member.name: " ".join(_short(override) for override in member.overrides if counts[override] < len(members))
        for member in members
    }
    uses = Counter(short.values())
    return {name: label if label and uses[label] == 1 else name for name, label in short.items()}


def _short(override: str) -> str:
    """`learning_rate=0.05` for `optimization.learning_rate=0.05`."""
    key, equals, value = override.partition("=")
    return f"{key.rpartition('.')[2]}{equals}{value}"


def launcher_file(sweep_dir: Path) -> Path:
    """The file that tells how the sweep was last launched."""
    return sweep_dir / ".sweep" / "launcher.json"


def write_launcher(sweep_dir: Path, *, queue: str, options: Mapping[str, Any]) -> None:
    """Record how the sweep is launched, for `esper sweep resume`."""
    _write(launcher_file(sweep_dir), {"queue": queue, "options": dict(options)})


def launcher_of(sweep_dir: Path) -> tuple[str, dict[str, Any]]:
    """The queue of the last launch, and its options.

    Raises:
        RunError: launcher.json is missing or unreadable.
    """
    content = _read(launcher_file(sweep_dir), _LAUNCHER, remedy="run the sweep's command again")
    if content is None:
        raise RunError(f"{launcher_file(sweep_dir)} is missing; run the sweep's command again")
    return content["queue"], content["options"]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _read(path: Path, schema: TypeAdapter[dict[str, Any]], *, remedy: str) -> dict[str, Any] | None:
    """A JSON file; None if it is missing."""
    try:
        return read_json(path, schema)
    except FileNotFoundError:
        return None
    except RunError as error:
        raise RunError(f"{error}; {remedy}") from None


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise WriteError(f"cannot make {folder}: {error.strerror or error}") from None
