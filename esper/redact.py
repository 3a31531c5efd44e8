"""Strike out passwords and tokens: the only place that knows what they look like. Imports the standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from urllib.parse import unquote

__all__ = ["credentials", "printable", "redact", "remember_credentials", "without_credentials"]

_ADDRESS = re.compile(r"([\w+.-]+)://([^\s\"'`<>]+)")
# The second form: a password with an unescaped slash, as SQLAlchemy reads it; `host:5000/` is a port.
_LOGIN = re.compile(r"[^/?#]*@|[^:/?#@]*:(?!\d+(?:[/?#]|$))[^@]*@")
_PARAMETER = re.compile(
    r"([?&;#][\w.%-]*(?:pass(?:word|wd|phrase)?|pwd|secret|token|api_?key|access_?key|auth|sig(?:nature)?"
    r"|credentials?|odbc_connect)=)([^&;#]+)",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"(?:PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|[_-]KEY)$", re.IGNORECASE)
"""Environment variables whose value is a secret."""
_MIN_LENGTH = 4
"""Shorter values are not searched for: they stand in many words."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Characters that command a terminal (all but tab and new line) or change the direction of what follows."""

_known: set[str] = set()


def printable(text: str) -> str:
    r"""Text that cannot command a terminal: its control characters are written as `\x1b`."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def redact(text: str) -> str:
    """Text, such as a library's error, without credentials: those of addresses, of the environment, of settings."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return without_credentials(text)


def without_credentials(text: str) -> str:
    """Text without user and password in its addresses, and with `***` for passwords and tokens in their queries."""

    def clean(found: re.Match[str]) -> str:
        login = _LOGIN.match(found[2])
        return f"{found[1]}://" + _PARAMETER.sub(r"\1***", found[2][login.end() if login else 0 :])

    return _ADDRESS.sub(clean, text)


def credentials(text: str, *, users: bool = True) -> list[str]:
    """Passwords and tokens in the addresses of a text; with `users`, also users of HTTP without a password."""
    return [
        secret
        for scheme, rest in _ADDRESS.findall(text)
        for secret in _credentials(rest, users=users and scheme.startswith("http"))
        if secret
    ]


def remember_credentials(address: str) -> None:
    """Let `redact` strike out the credentials of this address wherever they appear."""
    _known.update(credentials(address))


def _credentials(rest: str, *, users: bool) -> Iterator[str]:
    if login := _LOGIN.match(rest):
        user, _, password = login[0][:-1].partition(":")
        yield password or (user if users else "")
    yield from (parameter[2] for parameter in _PARAMETER.finditer(rest))


def _secrets() -> set[str]:
    found = set(_known)
    for name, value in os.environ.items():
        if _VARIABLE.search(name):
            found.add(value)
        elif "://" in value:
            found.update(credentials(value))
    return {secret for secret in found | {unquote(secret) for secret in found} if len(secret) >= _MIN_LENGTH}
