"""How a command ends when something is wrong: one line on stderr, and the error's exit code."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NoReturn, TextIO

from esper.errors import ConfigError, EsperError, RankError, one_line
from esper.redact import redact

__all__ = ["collect_failures", "error_line", "exit_with", "print_traceback", "record_failure"]

# Failed members of a sweep in the process of `esper-train`. Unset in the processes of foreign launchers (joblib, ...),
# where a failure must be raised for the launcher to notice.
_failures: ContextVar[dict[str, int]] = ContextVar("failures")


@contextlib.contextmanager
def collect_failures() -> Iterator[dict[str, int]]:
    """Collect the lines that `record_failure` gets inside this context, with their exit codes."""
    token = _failures.set({})
    try:
        yield _failures.get()
    finally:
        _failures.reset(token)


def record_failure(line: str, *, exit_code: int = 1) -> bool:
    """Record that a member of the sweep failed, so that the others still run; False outside `collect_failures`."""
    failures = _failures.get(None)
    if failures is not None:
        failures[line] = exit_code
    return failures is not None


def error_line(error: BaseException) -> str:
    """The error's message on one line, after the name of its type unless it is an `EsperError`."""
    line = one_line(error)
    name = type(error).__name__
    return line if isinstance(error, EsperError) or line == name else f"{name}: {line}"


def print_traceback(file: TextIO | None = None) -> None:
    """Print the traceback of the exception being handled, without credentials, on stderr or in a file."""
    (file or sys.stderr).write(redact(traceback.format_exc()))


def exit_with(error: EsperError) -> NoReturn:
    """Print the error and raise `SystemExit`, because Hydra swallows ordinary exceptions in callbacks.

    All ranks of a run refuse bad input; rank 0 prints the error.
    """
    if not _is_printed_by_rank_0(error):
        sys.stderr.write(f"error: {error_line(error)}\n")
    raise SystemExit(error.exit_code)


def _is_printed_by_rank_0(error: EsperError) -> bool:
    from esper.configs.rank_env import rank_env  # imports Hydra, which takes time that `esper --help` does not need

    try:
        return rank_env().rank > 0 and not isinstance(error, RankError)
    except ConfigError:  # the rank is unknown
        return False
