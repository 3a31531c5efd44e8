"""The environment of a run: versions, hardware, who started it and with what, git state of the working directory."""

from __future__ import annotations

import getpass
import os
import platform
import re
import secrets
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from esper.redact import without_credentials

__all__ = ["SHARED_PROCESS", "cpu_name", "environment", "git_diff"]

SHARED_PROCESS = "shared_process"
"""Host, number and random token of a process in which other runs train, too: an entry of their environment alone.

Containers may share a name and a number, and numbers are used again.
"""
_TOKEN = secrets.token_hex(4)

_PACKAGE = Path(__file__).parents[1]
_PACKAGES = ("torch", "torchvision", "hydra-core", "mlflow")


def environment(*, written_to: Sequence[Path] = ()) -> dict[str, str | None]:
    """Versions, hardware, user, program, and git commit of the working directory; None where unknown.

    Args:
        written_to: folders that runs write to; what lies there leaves a checkout clean.
    """
    import torch

    import esper
    from esper import turns

    status = _git("status", "--porcelain", "--", ":(top)", *_excluded(written_to))
    return {
        "esper": esper.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "hostname": platform.node(),
        **({SHARED_PROCESS: f"{platform.node()}, {os.getpid()}, {_TOKEN}"} if turns.current() is not None else {}),
        "cpu": cpu_name(),
        "num_threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "user": _user(),
        "source": _source(),
        "git_commit": _stripped(_git("rev-parse", "HEAD")),
        "git_branch": _stripped(_git("symbolic-ref", "--quiet", "--short", "HEAD")),
        "git_dirty": None if status is None else str(bool(status)).lower(),
        "git_remote": _stripped(_git("remote", "get-url", "origin")),
    }


def git_diff(*, limit_bytes: int = 1_000_000) -> str:
    """Uncommitted changes to tracked files of the working directory's repository; empty without one."""
    diff = without_credentials(_git("diff", "--no-ext-diff", "HEAD") or "").encode()
    if len(diff) <= limit_bytes:
        return diff.decode()
    return diff[:limit_bytes].decode(errors="ignore") + f"\n(cut at {limit_bytes} bytes)\n"


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user may have no name
        return None


def _source() -> str | None:
    """The program that started the run: `esper-train`, the user's script, or a notebook."""
    program = Path(sys.argv[0]) if sys.argv else Path()
    if program.name == "ipykernel_launcher.py":
        return Path(os.environ.get("JPY_SESSION_NAME", "notebook")).name
    if program.name == "esper-train" or _PACKAGE in program.absolute().parents:  # a job of a sweep
        return "esper-train"
    return str(program) if program.is_file() else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str | None:
    """Model of the processor; None if unknown."""
    try:
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        model = None
    return model[1] if model else platform.processor() or None


def _excluded(folders: Sequence[Path]) -> list[str]:
    """Git's arguments that leave out these folders; those outside of the checkout are out anyway."""
    top = Path((_git("rev-parse", "--show-toplevel") or "/").rstrip("\n"))
    inside = [folder.resolve() for folder in folders]
    return [f":(exclude,literal){path}" for path in inside if path != top and path.is_relative_to(top)]


def _git(*arguments: str) -> str | None:
    """Output of a git command; None without git, repository or commit, or after 10 s."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            timeout=10,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # do not disturb a commit in progress
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def _stripped(output: str | None) -> str | None:
    return None if output is None else without_credentials(output.strip())
