"""Access to the bus: passwords, users, TLS; credentials are never printed."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esper.configs import RedisConfig
from esper.configs.check import check
from esper.contracts.messages import DecisionMade, TopicName
from esper.errors import BusError, ConfigError, EsperError
from esper.oona.codec import message
from esper.oona.redis import RedisBus, address
from esper.oona.service import serve
from tests.conftest import tiny_config
from tests.oona.certificates import write_certificates
from tests.oona.payloads import numbered
from tests.oona.server import PASSWORD, RedisServer

CANARY = "canary-7f3a"
COMMANDS = (
    *("ping", "time", "xadd", "xlen", "xtrim", "xpending", "xinfo|groups"),  # publishers
    *("xread", "xrevrange"),  # clients of a shared Tamiyo
    *("xgroup|create", "xreadgroup", "xautoclaim", "xack", "multi", "exec", "expire", "set", "del"),  # services
    *("scan", "mget"),  # esper services status
)
"""Permissions a user needs on the keys esper:*; INFO is optional, for the server's version."""
ELSEWHERE = "redis://192.0.2.1:6379"


def answers(nonce: str) -> list[Any]:
    payload = DecisionMade(run_id="lab/run", epoch=1, nonce=nonce, decision=None)
    return [message(TopicName.COMMANDS, payload, sender="test", trace="test")]


def everything(bus: RedisBus) -> list[Callable[[], object]]:
    """Calls that together use every command."""
    topic, channel, who = TopicName.EPOCHS, "lab/run", {"group": "readers", "consumer": "one"}

    def refuse() -> None:
        bus.publish(numbered(1))
        (entry, *_) = bus.take(topic, **who)
        bus.refuse(topic, group="readers", entry=entry, reason="late")

    def acknowledge() -> None:
        while entries := bus.take(topic, **who, count=1000):
            bus.acknowledge(topic, group="readers", entries=entries)

    return [
        bus.ping,
        lambda: bus.publish(numbered(*range(150))),
        lambda: bus.publish(numbered(*range(150))),  # over the limit: trims
        refuse,
        acknowledge,
        lambda: bus.publish(numbered(*range(150))),
        acknowledge,
        lambda: bus.publish(numbered(1)),  # trims acknowledged messages
        lambda: bus.publish(answers("n"), channel=channel),
        lambda: bus.latest(TopicName.COMMANDS, channel=channel),
        lambda: bus.after(TopicName.COMMANDS, channel=channel, cursor=""),
        lambda: bus.beat("tamiyo", "serving", lasts_s=9),
        bus.heartbeats,
        lambda: bus.silence("tamiyo"),
    ]


def refused(bus: RedisBus) -> bool:
    """Whether any call was refused."""
    try:
        for call in everything(bus):
            call()
    except BusError:
        return True
    return False


# --- passwords and users ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", ["wrong", None])
def test_a_wrong_or_missing_password_is_an_error_without_it(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, password: str | None
) -> None:
    redis_server.start()
    monkeypatch.delenv("ESPER_REDIS_PASSWORD")
    if password:
        monkeypatch.setenv("ESPER_REDIS_PASSWORD", f"{CANARY}-{password}")
    with contextlib.closing(RedisBus(redis_server.config())) as bus, pytest.raises(BusError) as caught:
        bus.publish(numbered(1))
    assert "ESPER_REDIS_PASSWORD" in str(caught.value)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("where", ["url", "user in the url", "environment", "url in the environment"])
def test_user_and_password_come_from_the_url_or_the_environment(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    redis_server.start()
    with contextlib.closing(redis_server.admin()) as admin:
        admin.acl_setuser("lab", enabled=True, passwords=[f"+{CANARY}/x"], keys=["esper:*"], commands=["+ping"])
    host, login = f"127.0.0.1:{redis_server.port}", f"lab:{CANARY}%2Fx"
    urls = {
        "url": f"redis://{login}@{host}",
        "user in the url": f"redis://lab@{host}",
        "environment": f"redis://{host}",
    }
    monkeypatch.delenv("ESPER_REDIS_PASSWORD")
    if where in ("environment", "user in the url"):
        monkeypatch.setenv("ESPER_REDIS_PASSWORD", f"{CANARY}/x")
    if where == "environment":
        monkeypatch.setenv("ESPER_REDIS_USERNAME", "lab")
    if where == "url in the environment":
        monkeypatch.setenv("ESPER_REDIS_URL", urls["url"])
    with contextlib.closing(RedisBus(redis_server.config(url=urls.get(where)))) as bus:
        bus.ping()
        with pytest.raises(BusError, match="permissions"):
            bus.publish(numbered(1))


def test_the_documented_permissions_are_sufficient_and_each_is_necessary(redis_server: RedisServer) -> None:
    redis_server.start()
    with contextlib.closing(redis_server.admin()) as admin:
        for left_out in (None, *COMMANDS):
            commands = [f"+{command}" for command in COMMANDS if command != left_out]
            admin.flushall()
            admin.acl_setuser("lab", enabled=True, passwords=[f"+{PASSWORD}"], keys=["esper:*"], commands=commands)
            with contextlib.closing(redis_server.bus(user="lab", stream_limit=100, claim_after_s=0)) as bus:
                assert refused(bus) == (left_out is not None), left_out
            admin.acl_deluser("lab")


def test_a_user_without_permission_for_the_keys_is_refused(redis_server: RedisServer) -> None:
    redis_server.start()
    with contextlib.closing(redis_server.admin()) as admin:
        admin.acl_setuser("lab", enabled=True, passwords=[f"+{PASSWORD}"], keys=["other:*"], commands=["+@all"])
    with contextlib.closing(redis_server.bus(user="lab")) as bus:
        bus.ping()
        with pytest.raises(BusError, match="permissions"):
            bus.publish(numbered(1))


# --- other machines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [ELSEWHERE, "rediss://redis.example", "redis://user@redis.example/1", "redis://0.0.0.0", "redis://[2001:db8::1]",
     "redis:///0?host=redis.example"],
)  # fmt: skip
def test_a_remote_server_without_a_password_is_refused_unless_allowed(url: str) -> None:
    for refuse in (address, RedisBus):
        with pytest.raises(ConfigError, match="redis"):
            refuse(RedisConfig(url=url))
    if "?" not in url:
        RedisBus(RedisConfig(url=url, allow_unauthenticated=True)).close()


@pytest.mark.parametrize(
    "url",
    ["redis://localhost", "redis://127.0.0.1:1", "redis://127.8.9.1", "redis://[::1]:1", "unix:///run/redis.sock"],
)
def test_a_local_server_needs_no_password(url: str) -> None:
    RedisBus(RedisConfig(url=url)).close()


def test_a_password_from_the_environment_allows_a_remote_server_with_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_REDIS_PASSWORD", CANARY)
    RedisBus(RedisConfig(url=ELSEWHERE.replace("redis://", "rediss://"))).close()


@pytest.mark.parametrize(
    "url", [ELSEWHERE, f"redis://u:{CANARY}@redis.example", "redis://10.0.0.7:1", "redis://0.0.0.0"]
)
def test_a_password_without_tls_goes_to_this_machine_only_unless_allowed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPER_REDIS_PASSWORD", CANARY)
    for refuse in (address, RedisBus):
        with pytest.raises(ConfigError, match=r"unencrypted; use rediss://.*redis\.allow_unencrypted") as error:
            refuse(RedisConfig(url=url))
        assert CANARY not in str(error.value)
    RedisBus(RedisConfig(url=url, allow_unencrypted=True)).close()
    for local in ("redis://localhost", "redis://[::1]:1", "unix:///run/redis.sock"):
        RedisBus(RedisConfig(url=local)).close()


# --- URLs -------------------------------------------------------------------------------------------------------------

STRANGE = (
    f"redis://user:{CANARY}/x@localhost:6379", f"redis://user:{CANARY}#x@localhost", f"redis://u:x?{CANARY}@localhost",
    f"redis://localhost/0?password={CANARY}", f"redis://localhost:{CANARY}", f"redis://[{CANARY}", f"{CANARY}@local",
    f"http://user:{CANARY}@localhost", f"redis://user:{CANARY}@local/x", f"redis://a:{CANARY}@b:{CANARY}@local:x",
)  # fmt: skip


@pytest.mark.parametrize("url", STRANGE)
def test_an_invalid_url_is_refused_without_printing_a_password(url: str) -> None:
    for refuse in (address, RedisBus):
        with pytest.raises(ConfigError, match=r"redis\.url") as caught:
            refuse(RedisConfig(url=url))
        assert CANARY not in str(caught.value)


@pytest.mark.parametrize("url", [*STRANGE, f"redis://user:{CANARY}@localhost", f"redis://:{CANARY}@localhost"])
def test_a_password_in_the_configuration_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"redis\.url") as caught:
        check(tiny_config(redis__url=url))
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "url", [None, "redis://lab@redis.example:6380/2", "rediss://redis.example", "unix:///run/r.sock"]
)
def test_a_url_without_a_password_may_be_configured(url: str | None) -> None:
    check(tiny_config(redis__url=url))


def test_the_address_of_a_bus_has_neither_user_nor_password() -> None:
    config = RedisConfig(url=f"rediss://user:{CANARY}@redis.example:6380/2")
    assert address(config) == RedisBus(config).address == "rediss://redis.example:6380/2"


# --- TLS --------------------------------------------------------------------------------------------------------------


def secured(server: RedisServer, files: dict[str, Path]) -> RedisServer:
    tls = ("--port", "0", "--tls-port", str(server.port), "--tls-auth-clients", "no")
    named = {"--tls-cert-file": "server.crt", "--tls-key-file": "server.key", "--tls-ca-cert-file": "ca.crt"}
    return server.start(*tls, *(part for name, file in named.items() for part in (name, str(files[file]))))


def test_the_certificate_of_a_tls_server_is_verified(redis_server: RedisServer, tmp_path: Path) -> None:
    files = write_certificates(tmp_path)
    secured(redis_server, files)
    url, ca_file = f"rediss://127.0.0.1:{redis_server.port}", str(files["ca.crt"])
    with contextlib.closing(RedisBus(redis_server.config(url=url, ca_file=ca_file))) as bus:
        bus.publish(numbered(1))
    other = f"rediss://localhost:{redis_server.port}"  # the certificate is for 127.0.0.1
    unusable = [
        RedisConfig(url=url),
        RedisConfig(url=other, ca_file=ca_file),
        RedisConfig(url=url.replace("rediss", "redis"), timeout_s=1),
    ]
    for config in unusable:
        with contextlib.closing(RedisBus(config)) as bus, pytest.raises(BusError) as caught:
            bus.publish(numbered(1))
        assert CANARY not in str(caught.value)


def test_a_missing_or_unused_ca_file_is_an_error(tmp_path: Path) -> None:
    files = write_certificates(tmp_path)
    with pytest.raises(ConfigError, match=r"redis\.ca_file.*rediss://"):
        RedisBus(RedisConfig(url="redis://localhost", ca_file=str(files["ca.crt"])))
    with pytest.raises(ConfigError, match=r"redis\.ca_file.*no such file"):
        RedisBus(RedisConfig(url="rediss://localhost", ca_file=str(tmp_path / "none.crt")))


# --- silence ----------------------------------------------------------------------------------------------------------


def test_neither_errors_nor_logs_contain_the_password(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    redis_server.start()
    stop = threading.Event()
    with contextlib.closing(redis_server.bus(timeout_s=0.2)) as bus:
        told: list[str] = [repr(bus), bus.address]

        def once() -> None:
            try:
                bus.publish(numbered(1))
            except EsperError as error:
                told.extend([str(error), repr(error), repr(error.__cause__)])
                if len(told) > 8:
                    stop.set()
                raise
            if len(told) < 4:
                redis_server.stop()
            else:
                redis_server.kill()

        serve(once, stop=stop)
        redis_server.kill()
    assert len(told) > 8
    assert "retrying in" in caplog.text
    assert CANARY not in "".join(told) + caplog.text
