"""The errors Esper raises on purpose.

EsperError                  anything a user can act on; `exit_code` is the process's
├── ConfigError             bad input: key, value, what is allowed, remedy (also a ValueError); exit 2
├── DataError               a dataset that is missing, unreadable or too small; exit 2
├── StoreError              a blueprint library that cannot be used; exit 2
├── BusError                a message bus that cannot be reached, or refuses; exit 1
│   └── BusFullError        a stream whose readers are too far behind
├── MessageError            a message that is too long, or not one of this version; exit 1
├── RunError                a run folder that is locked, foreign or unreadable; exit 2
├── CheckpointError         a checkpoint that is damaged or does not fit; exit 1
├── SurgeryError            a growth operation that is not allowed or failed its checks; exit 1
├── DivergenceError         the loss or a weight is no longer finite; exit 1
└── RankError               another process of the run has ended, or differs; exit 1
"""

from __future__ import annotations

__all__ = [
    "BusError",
    "BusFullError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergenceError",
    "EsperError",
    "MessageError",
    "RankError",
    "RunError",
    "StoreError",
    "SurgeryError",
    "one_line",
]


class EsperError(Exception):
    """Base of all errors whose message is meant for the user: one line, what and what to do."""

    exit_code = 1


class ConfigError(EsperError, ValueError):
    """A setting that cannot be used."""

    exit_code = 2


class DataError(EsperError):
    """A dataset that cannot be used."""

    exit_code = 2


class StoreError(EsperError):
    """A blueprint library that cannot be used."""

    exit_code = 2


class BusError(EsperError):
    """A message bus that cannot be reached, or refuses."""


class BusFullError(BusError):
    """A stream whose readers are too far behind; it takes no telemetry until they have caught up."""


class MessageError(EsperError):
    """A message that is too long, or not one of this version."""


class RunError(EsperError):
    """A run folder that cannot be used."""

    exit_code = 2


class CheckpointError(EsperError):
    """A checkpoint that cannot be loaded or saved."""


class SurgeryError(EsperError):
    """A growth operation that was refused; the model is as it was before."""


class DivergenceError(EsperError):
    """Training produced a value that is not finite."""


class RankError(EsperError):
    """Several processes train one network, and another one has ended, failed or differs."""


def one_line(error: object, *, max_length: int | None = None) -> str:
    """An error's message on one line; the name of its type where the message is empty."""
    return " ".join(str(error).split())[:max_length] or type(error).__name__
