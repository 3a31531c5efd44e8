"""Numbers as text, for the terminal, the reports and the trackers; None becomes `–`."""

from __future__ import annotations

import math

from esper.contracts.metrics import MetricInfo

__all__ = ["age", "change", "clock", "duration", "loss", "memory", "metric", "number", "percent", "signed"]

_UNKNOWN = "–"


def number(value: float | None) -> str:
    """A count: 950, 98,765; from 100,000 with three digits: 123 k, 4.56 M, 7.89 G, 1.23 T."""
    if value is None:
        return _UNKNOWN
    if abs(value) < 99_999.5:
        return f"{value:,.0f}"
    for unit in ("k", "M", "G", "T", "P"):
        value /= 1000
        if abs(value) < 999.5 or unit == "P":
            break
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"


def signed(value: float | None) -> str:
    """A count with its sign."""
    return f"+{number(value)}" if value is not None and value >= 0 else number(value)


def percent(fraction: float | None) -> str:
    """A fraction in [0, 1] as a percentage."""
    return _UNKNOWN if fraction is None else f"{100 * fraction:.1f} %"


def metric(value: float | None, info: MetricInfo, *, decimals: int = 1) -> str:
    """A metric: a percentage with some decimals, or a number with four digits and its unit."""
    if value is None:
        return _UNKNOWN
    if info.unit != "%":
        digits = f"{value:#.4g}".rstrip(".")  # 4.000 among 4.121 and 3.913
        return f"{digits} {info.unit}".strip()
    return f"{100 * value:.{decimals}f} %"


def change(before: float | None, after: float | None) -> str:
    """Relative change from `before` to `after`: `+4.2 %`."""
    return f"{100 * (after / before - 1):+.1f} %" if before and after is not None else _UNKNOWN


def loss(value: float | None) -> str:
    """A loss in nats, or a difference of losses, to four decimals."""
    return _UNKNOWN if value is None else f"{value:.4f}"


def clock(seconds: float | None) -> str:
    """A duration as on a clock: 0:07, 12:34, 1:02:03."""
    if seconds is None:
        return _UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """A duration in words: `5 h 20 min`, `12 min`, `8 s`, rounded up to seconds."""
    whole = math.ceil(seconds)
    minutes, hours = whole // 60, whole // 3600
    return f"{hours} h {minutes % 60:02} min" if hours else f"{minutes} min" if minutes else f"{whole} s"


def age(seconds: float) -> str:
    """How long ago something was: as `duration`, from two days on in days."""
    days = int(seconds // 86_400)
    return f"{days} d" if days > 1 else duration(max(0.0, seconds))


def memory(num_bytes: float | None) -> str:
    """An amount of memory: 312 MB, 4.1 GB."""
    if num_bytes is None:
        return _UNKNOWN
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
