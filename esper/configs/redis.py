"""Where the message bus is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from esper.configs.schema import setting
from esper.errors import ConfigError

__all__ = ["RedisConfig", "parse_redis_url"]

_LOGIN = r"(?:[^/?#@]*@)?"
_URL = re.compile(
    rf"rediss?://{_LOGIN}(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?(?:/[0-9]*)?"
    rf"|unix://{_LOGIN}/[^?#@]+(?:\?db=[0-9]+)?"
)


@dataclass(kw_only=True)
class RedisConfig:
    """Group `redis`; user and password come from ESPER_REDIS_USERNAME and ESPER_REDIS_PASSWORD, or ESPER_REDIS_URL."""

    url: str | None = setting(
        None,
        "redis://HOST:PORT/DB, rediss:// with TLS, unix:///PATH, or embedded (one's own, see redis=embedded); "
        "null: ESPER_REDIS_URL, else redis://localhost:6379/0",
    )
    ca_file: str | None = setting(None, "certificates that a server's own is checked with; null: the system's")
    allow_unauthenticated: bool = setting(False, "use a server on another machine though it asks for no password")
    timeout_s: float = setting(2.0, "seconds to wait for the server, at most", above=0)
    stream_limit: int = setting(10_000, "messages that a topic keeps; those not yet acknowledged stay", low=100)


def parse_redis_url(url: str) -> SplitResult:
    """The parts of a server's URL.

    Raises:
        ConfigError: it is none; it is not repeated, since what is wrong may be part of a password.
    """
    if not _URL.fullmatch(url):
        raise ConfigError(
            "redis.url (or ESPER_REDIS_URL): must be redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH; in a "
            "user or password, write @ : / ? # % as %40 %3A %2F %3F %23 %25"
        )
    return urlsplit(url)
