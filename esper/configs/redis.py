"""The Redis server of the message bus."""

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
        "redis://HOST:PORT/DB, rediss:// with TLS, unix:///PATH, or embedded (a private server, see redis=embedded); "
        "null: ESPER_REDIS_URL, else redis://localhost:6379/0",
    )
    ca_file: str | None = setting(None, "CA certificates to verify the server with; null: those of the system")
    allow_unauthenticated: bool = setting(False, "use a server on another machine even if it needs no password")
    allow_unencrypted: bool = setting(False, "send the password to a server on another machine without TLS")
    timeout_s: float = setting(2.0, "maximum seconds to wait for the server", above=0)
    stream_limit: int = setting(10_000, "messages that a topic keeps, besides those not yet acknowledged", low=100)


def parse_redis_url(url: str) -> SplitResult:
    """Split the URL of a server.

    Raises:
        ConfigError: it is invalid. The message does not repeat it, since the invalid part may be a password.
    """
    if not _URL.fullmatch(url):
        raise ConfigError(
            "redis.url (or ESPER_REDIS_URL): must be redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH; in a "
            "user or password, write @ : / ? # % as %40 %3A %2F %3F %23 %25"
        )
    return urlsplit(url)
