"""How OpenMP's threads wait is set where the environment leaves it open."""

from __future__ import annotations

import os

import pytest

from esper import start

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.mark.parametrize(
    ("given", "policy"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "7"}, None)]
)
def test_threads_sleep_while_they_wait_unless_the_environment_says_otherwise(
    given: dict[str, str], policy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | given
    monkeypatch.setattr(os, "environ", environment)
    found = []
    monkeypatch.setattr("esper.train.main", lambda: found.append(environment.get("OMP_WAIT_POLICY")))
    start.main()
    assert found == [policy]
