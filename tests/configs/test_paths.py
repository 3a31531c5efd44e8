"""Relative paths mean the folder of the command, wherever they are used; the name of a run does not depend on it."""

from __future__ import annotations

import dataclasses
import os
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import make_url

from esper.configs import TolariaConfig, load_config
from esper.configs.compose import compose
from esper.configs.identity import differences, digest
from esper.configs.load import from_hydra, to_yaml
from esper.configs.paths import PATHS, absolute_paths, absolute_url, absolute_variables, as_given, mark, sqlite_url
from esper.configs.schema import settings
from esper.errors import ConfigError

LAB, HOME = Path("/lab"), Path.home()


def with_path(key: str, value: str) -> TolariaConfig:
    config, (group, _, name) = TolariaConfig(), key.partition(".")
    return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{name: value})})


@pytest.mark.parametrize("key", PATHS)
def test_a_relative_path_starts_in_the_folder_of_the_command(key):
    found = attrgetter(key)(absolute_paths(with_path(key, "a/b"), "/lab"))
    assert Path(found) == Path("/lab/a/b")
    assert as_given(found) == "a/b"


@pytest.mark.parametrize("key", PATHS)
def test_absolute_paths_stay_and_the_home_folder_is_named(key):
    assert attrgetter(key)(absolute_paths(with_path(key, "/a/b"), "/lab")) == "/a/b"
    assert attrgetter(key)(absolute_paths(with_path(key, "~/b"), "/lab")) == str(HOME / "b")
    once = absolute_paths(with_path(key, "b"), "/lab")
    assert absolute_paths(once, "/elsewhere") == once


def test_every_setting_that_names_a_folder_or_file_is_among_the_paths():
    words = ("_dir", "_path", "_file", "_from")
    named = {key for key, hint, _ in settings(TolariaConfig) if key.endswith(words) and hint != list[str]}
    assert named <= {*PATHS, "morphogenetic.growth_from"}


@pytest.mark.parametrize("given_path", ["./data", "data", "../data", "a//b"])
def test_the_name_of_a_run_does_not_depend_on_the_folder(given_path):
    config = with_path("dataset.data_dir", given_path)
    here, there = absolute_paths(config, "/here"), absolute_paths(config, "/there")
    assert digest(here) == digest(there) == digest(config)
    assert not differences(dataclasses.asdict(here), there)
    assert digest(here) != digest(absolute_paths(with_path("dataset.data_dir", "/here/data"), "/here"))


def test_the_same_folder_given_in_another_way_is_no_difference():
    here = absolute_paths(with_path("dataset.data_dir", "./data"), "/here")
    assert not differences(dataclasses.asdict(here), with_path("dataset.data_dir", "/here/data"))
    assert differences(dataclasses.asdict(here), with_path("dataset.data_dir", "/there/data"))


def test_a_recorded_configuration_means_the_same_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    config = from_hydra(compose(["dataset=digits", "dataset.data_dir=d", "tracking.uri=sqlite:///m.db"]))
    Path("config.yaml").write_text(to_yaml(config))
    monkeypatch.chdir(tmp_path)
    assert load_config("a/config.yaml") == config
    assert config.tracking.uri == f"sqlite:///{tmp_path}/a/m.db"
    assert Path(config.dataset.data_dir) == tmp_path / "a" / "d"


def test_a_relative_path_is_checked_in_the_folder_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in ("d/train", "d/test"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    cfg = compose(["dataset=imagefolder", "dataset.data_dir=d"])
    monkeypatch.chdir("/")
    assert from_hydra(cfg).dataset.name == "imagefolder"
    with pytest.raises(ConfigError, match=r"data_dir=/lab/\./d: needs a folder train/ .*; there is no such folder$"):
        from_hydra(cfg, folder="/lab")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///m.db", "sqlite:////lab/m.db"),
        ("sqlite:///./a/m.db?timeout=3", "sqlite:////lab/a/m.db?timeout=3"),
        ("sqlite+pysqlite:///m.db", "sqlite+pysqlite:////lab/m.db"),
        ("mlruns", "/lab/mlruns"),
        ("./a b", "/lab/a b"),
        ("file:mlruns", "file:///lab/mlruns"),
        *((same, same) for same in ("sqlite:////a/m.db", "sqlite:///:memory:", "sqlite:///file:/x?uri=true")),
        *((same, same) for same in ("http://h:5000/a", "databricks", "databricks://p", "postgresql:///esper")),
    ],
)
def test_relative_files_in_urls_start_in_the_folder_of_the_command(url, expected):
    assert absolute_url(url, LAB) == expected
    assert absolute_url(expected, "/elsewhere") == expected


@pytest.mark.parametrize("url", ["sqlite:///m.db", "mlruns", "http://h:5000/a", "databricks", ""])
def test_a_relative_tracking_uri_of_the_environment_is_frozen_in_the_folder_of_the_command(
    url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    monkeypatch.chdir(tmp_path)
    absolute_variables()
    assert os.environ["MLFLOW_TRACKING_URI"] == (url and absolute_url(url, tmp_path))


def test_a_tracking_uri_that_is_not_set_stays_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    absolute_variables()
    assert "MLFLOW_TRACKING_URI" not in os.environ


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20))
def test_sqlite_files_lie_where_they_are_said_to(name):
    file = Path("/lab", name.replace(".", "_"), "m.db")
    assert make_url(sqlite_url(file)).database == str(file)
    assert make_url(absolute_url("sqlite:///m.db", file.parent)).database == str(file)
    assert as_given(mark("d", file.parent)) == "d"
