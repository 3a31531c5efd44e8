"""Where the message bus is."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["RedisConfig"]


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
