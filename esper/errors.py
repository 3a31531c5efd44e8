"""Errors that Esper raises on purpose.

EsperError                  base class; `exit_code` is that of the process
├── ConfigError             invalid setting: key, value, allowed values, remedy (also a ValueError); exit 2
├── DataError               a dataset that is missing, unreadable or too small; exit 2
│   └── DecoderError        a process that decodes images has died; exit 1
├── StoreError              a blueprint library that cannot be used; exit 2
├── BusError                a message bus that cannot be reached, or refuses a command; exit 1
│   └── BusFullError        a stream whose readers are too far behind
├── MessageError            a message that is too long, invalid or of another version; exit 1
├── RunError                a run folder that is locked, of another version or unreadable; exit 2
│   └── WriteError          a file that cannot be written, or a run folder that is gone in mid-run; exit 1
├── CheckpointError         a checkpoint that is damaged or does not fit; exit 1
├── SurgeryError            a growth operation that is not allowed or failed its checks; exit 1
├── DivergenceError         the loss or a weight is not finite; exit 1
├── MemoryLimitError        a step, or what grows, needs more memory than there is; exit 1
└── RankError               another rank of the run has ended, failed or differs; exit 1
"""

from __future__ import annotations

from esper.redact import printable, redact

__all__ = [
    "BusError",
    "BusFullError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DecoderError",
    "DivergenceError",
    "EsperError",
    "MemoryLimitError",
    "MessageError",
    "RankError",
    "RunError",
    "StoreError",
    "SurgeryError",
    "WriteError",
    "one_line",
]


class EsperError(Exception):
    """Base of all errors whose message is for the user: one line, the problem and the remedy."""

    exit_code = 1


class ConfigError(EsperError, ValueError):
    """An invalid setting."""

    exit_code = 2


class DataError(EsperError):
    """A dataset that cannot be used."""

    exit_code = 2


class DecoderError(DataError):
    """A process that decodes images has died, which is no fault of the dataset."""

    exit_code = 1


class StoreError(EsperError):
    """A blueprint library that cannot be used."""

    exit_code = 2


class BusError(EsperError):
    """A message bus that cannot be reached, or refuses a command."""


class BusFullError(BusError):
    """A stream whose readers are too far behind; it accepts no messages until they catch up."""


class MessageError(EsperError):
    """A message that is too long, invalid or of another version."""


class RunError(EsperError):
    """A run folder that cannot be used."""

    exit_code = 2


class WriteError(RunError):
    """A file that cannot be written, or the folder of a run that is gone or another's while it trains."""

    exit_code = 1


class CheckpointError(EsperError):
    """A checkpoint that cannot be loaded or saved."""


class SurgeryError(EsperError):
    """A growth operation that was refused; the model is unchanged."""


class DivergenceError(EsperError):
    """Training produced a value that is not finite."""


class MemoryLimitError(EsperError):
    """A step, or what grows, needs more memory than there is."""


class RankError(EsperError):
    """Another rank of the run has ended, failed or differs."""


def one_line(error: object, *, max_length: int | None = None) -> str:
    """An error's message on one line, without credentials and control characters; if empty, the name of its type."""
    return printable(redact(" ".join(str(error).split())))[:max_length] or type(error).__name__
