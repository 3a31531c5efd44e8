"""What is recorded of settings that come from the environment, and which settings are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from esper.configs import TolariaConfig, load_config
from esper.configs.check import check
from esper.configs.load import from_hydra, to_yaml
from esper.configs.recorded import recorded
from esper.errors import ConfigError

ADDRESS = "http://u:${oc.env:LAB_TOKEN}@h/?token=${oc.env:LAB_TOKEN}"


def test_a_variable_is_recorded_as_it_was_written_and_resolved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_TOKEN", "canary-1")
    settings = {"tracking": {"uri": ADDRESS}, "tags": ["a", "${oc.env:LAB_TOKEN}"], "dataset": {"data_dir": "d"}}
    config = dataclasses.replace(from_hydra(OmegaConf.create(settings)), rng_seed=3)  # a copy
    assert config.tracking.uri == "http://u:canary-1@h/?token=canary-1"
    assert "canary-1" not in str(recorded(config))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert "canary-1" not in (tmp_path / "config.yaml").read_text()
    assert load_config(tmp_path / "config.yaml") == config
    monkeypatch.setenv("LAB_TOKEN", "canary-2")
    again = load_config(tmp_path / "config.yaml")
    assert (again.tracking.uri, again.tags) == ("http://u:canary-2@h/?token=canary-2", ["a", "canary-2"])


def test_settings_that_define_a_run_are_recorded_as_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_DATA", "/data")
    monkeypatch.setenv("LAB_SEED", "7")
    settings = {"dataset": {"data_dir": "${oc.env:LAB_DATA}/x"}, "rng_seed": "${oc.env:LAB_SEED}"}
    content = recorded(from_hydra(OmegaConf.create(settings)))
    assert (content["dataset"]["data_dir"], content["rng_seed"]) == ("/data/x", 7)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("tracking", "uri", "https://canary-1@h"),
        ("tracking", "uri", "https://h/?token=canary-1"),
        ("tracking", "uri", "canary-1@h:5000"),
        ("tracking", "uri", "http://u:canary-1@h/${oc.env:LAB_TOKEN}"),
        ("database", "url", "postgresql://lab@h/db?password=canary-1"),
        ("redis", "url", "redis://:canary-1@h"),
        ("", "description", "see https://h/?access_token=canary-1"),
        ("", "tags", ["a", "https://u:canary-1@h"]),
    ],
)
def test_a_secret_in_a_setting_is_refused_and_not_repeated(
    group: str, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_TOKEN", "x")
    with pytest.raises(ConfigError, match=r"contains a password or token.*write it as \$\{oc\.env:NAME\}") as error:
        from_hydra(OmegaConf.create({group: {name: value}} if group else {name: value}))
    assert "canary-1" not in str(error.value)


def test_names_of_users_and_ordinary_addresses_are_allowed() -> None:
    config = TolariaConfig(description="from ssh://git@host/code.git, https://h:5000/@x?seed=1")
    config.database.url = "postgresql://lab@h/db?sslmode=require"
    check(config)


def test_a_refusal_names_the_variable_instead_of_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_TOKEN", "canary-1")
    for setting, expected in (
        ("device", r"device=\$\{oc\.env:LAB_TOKEN\}: allowed are"),
        ("rng_seed", "rng_seed: must be"),
    ):
        with pytest.raises(ConfigError, match=expected) as error:
            from_hydra(OmegaConf.create({setting: "${oc.env:LAB_TOKEN}"}))
        assert "canary-1" not in str(error.value)
