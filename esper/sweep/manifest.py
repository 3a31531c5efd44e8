"""What a sweep consists of, on disk: each member's frozen configuration, its job, and how that ended.

outputs/<experiment>/.sweep/       for its owner alone
launcher.json                    how the sweep was launched last
<member>/config.yaml             frozen when it was submitted; what its job runs, however often it is requeued
<member>/member.json             overrides, working directory, the runs that an arm is measured against
<member>/job.json                the queue it is in, and its id there
<member>/began                   the job has begun
<member>/outcome.json            how the job ended, if it could say so
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.configs import TolariaConfig
from esper.configs.load import load_config, to_yaml
from esper.errors import RunError
from esper.tracking import write_atomically

__all__ = ["Job", "Member", "freeze", "launcher_of", "members_of", "write_launcher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Where a member was submitted: `queue` is slurm or local, `id` the job's there."""

    queue: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One run of a sweep.

    Attributes:
        sweep_dir: the sweep's folder; the run's folder has the member's name in it.
        name: the run's name.
        overrides: what tells it from the others on the command line.
        cwd: where the command was given, from which its relative paths count.
        siblings: names of the runs that the arm of a comparison is measured against, by arm.
    """

    sweep_dir: Path
    name: str
    overrides: tuple[str, ...]
    cwd: str
    siblings: Mapping[str, str]

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.sweep_dir / self.name

    @property
    def folder(self) -> Path:
        """Where the member is described."""
        return self.sweep_dir / ".sweep" / self.name

    @classmethod
    def read(cls, folder: Path) -> Member:
        """The member that a folder describes.

        Raises:
            RunError: it describes none.
        """
        content = _read(folder / "member.json")
        try:
            return cls(
                sweep_dir=folder.absolute().parents[1],
                name=folder.name,
                overrides=tuple(content["overrides"]),
                cwd=content["cwd"],
                siblings=content["siblings"],
            )
        except KeyError:
            raise RunError(
                f"{folder / 'member.json'} is missing or unreadable; start the sweep's command again"
            ) from None

    def config(self) -> TolariaConfig:
        """The configuration as it was when the member was submitted."""
        return load_config(self.folder / "config.yaml")

    def job(self) -> Job | None:
        """The job it was submitted as last."""
        content = _read(self.folder / "job.json")
        return Job(**content) if content else None

    def set_job(self, job: Job) -> None:
        """Write down which job the member is now."""
        _write(self.folder / "job.json", dataclasses.asdict(job))

    @property
    def began(self) -> bool:
        """Whether the job has begun, at least once."""
        return (self.folder / "began").exists()

    def begin(self) -> None:
        """Write down that the job has begun; a job that begins again has not ended."""
        (self.folder / "began").touch()
        (self.folder / "outcome.json").unlink(missing_ok=True)

    def outcome(self) -> dict[str, Any]:
        """How the job ended: status, reason and metric; {} while it has not, or could not say so."""
        return _read(self.folder / "outcome.json")

    def end(self, status: str, *, reason: str = "", metric: float | None = None) -> None:
        """Write down how the job ended: finished, failed or interrupted."""
        _write(self.folder / "outcome.json", {"status": status, "reason": reason, "metric": metric})

    def result(self) -> dict[str, Any] | None:
        """The figures of the run if it has finished."""
        status = _read(self.run_dir / "status.json")
        return status["result"] if status.get("status") == "finished" else None


def freeze(member: Member, config: TolariaConfig) -> None:
    """Write down what the member's job is to run; what an earlier job left is forgotten."""
    private = member.folder.parent
    private.mkdir(parents=True, exist_ok=True, mode=0o700)
    private.chmod(0o700)  # it may be older than this
    member.folder.mkdir(exist_ok=True, mode=0o700)
    for left in ("job.json", "began", "outcome.json"):
        (member.folder / left).unlink(missing_ok=True)
    write_atomically(member.folder / "config.yaml", to_yaml(config))
    described = {"overrides": list(member.overrides), "cwd": member.cwd, "siblings": dict(member.siblings)}
    _write(member.folder / "member.json", described)


def members_of(sweep_dir: Path) -> list[Member]:
    """The members of a sweep, in the order of their overrides.

    Raises:
        RunError: no sweep was submitted from there.
    """
    found = [path.parent for path in (sweep_dir.absolute() / ".sweep").glob("*/member.json")]
    if not found:
        raise RunError(
            f"{sweep_dir}: no sweep was launched there with hydra/launcher=local or slurm; give the folder that holds "
            "its runs, outputs/EXPERIMENT as a rule"
        )
    return sorted(map(Member.read, found), key=_in_order)


def _in_order(member: Member) -> list[tuple[int, str]]:
    """A key that puts `rng_seed=2` before `rng_seed=10`."""
    words = re.split(r"(\d+)", " ".join(member.overrides))
    return [(int(word), "") if word.isdecimal() else (0, word) for word in words]


def write_launcher(sweep_dir: Path, *, queue: str, options: Mapping[str, Any]) -> None:
    """Write down how the sweep is launched, for `esper sweep resume`."""
    _write(sweep_dir / ".sweep" / "launcher.json", {"queue": queue, "options": dict(options)})


def launcher_of(sweep_dir: Path) -> tuple[str, dict[str, Any]]:
    """The queue of a sweep, and its options."""
    content = _read(sweep_dir / ".sweep" / "launcher.json")
    if not content:
        raise RunError(f"{sweep_dir / '.sweep' / 'launcher.json'} is missing; start the sweep's command again")
    return content["queue"], content["options"]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; {} if it is not there, or is of no use."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
