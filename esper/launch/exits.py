"""How a command ends when something is wrong: one line on stderr, and the error's exit code."""

from __future__ import annotations

import sys
from typing import NoReturn

from esper.errors import ConfigError, EsperError, RankError

__all__ = ["exit_with", "line_of"]


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
