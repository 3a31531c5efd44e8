"""How a command ends when something is wrong: one line on stderr, and the error's exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

from esper.errors import ConfigError, EsperError, RankError

__all__ = ["exit_with", "failures", "line_of"]

# Failures of a sweep's members, in the process that runs `esper-train`: told in one line each when it ends. None
# anywhere else (a job of another launcher): there a failure has to be raised, so that the launcher hears of it.
failures: list[str] | None = None


def line_of(error: BaseException) -> str:
    """The error's message on one line; with its type, unless it is Esper's."""
    message = " ".join(str(error).split())
    return message if isinstance(error, EsperError) and message else f"{type(error).__name__}: {message}"


def exit_with(error: EsperError) -> NoReturn:
    """Print the one line and leave; as `SystemExit`, because Hydra swallows ordinary exceptions in callbacks.

    Where several processes train one network, all of them refuse bad input, and the first one says so.
    """
    if not _is_told_elsewhere(error):
        sys.stderr.write(f"error: {line_of(error)}\n")
    raise SystemExit(error.exit_code)


def _is_told_elsewhere(error: EsperError) -> bool:
    # Here, because that package imports Hydra, which `esper --help` does without.
    from esper.configs.place import place

    try:
        return place().rank > 0 and not isinstance(error, RankError)
    except ConfigError:  # nobody knows who this is
        return False
