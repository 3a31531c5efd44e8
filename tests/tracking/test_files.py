"""`recipe.json` and `sweep.json` are read as they were written, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from esper.contracts.recipe import Graft
from esper.errors import ConfigError, RunError
from esper.tracking.files import read_members, read_recipe, write_members, write_recipe

GRAFT = Graft(graft_id=1, site="layer1.0:beside", blueprint_id="conv3x3", init_seed=7, init_gain=0.5, born_step=3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_recipe(tmp_path / "recipe.json", [GRAFT], host="resnet_small")
    return tmp_path / "recipe.json"


def test_a_recipe_is_read_back_from_its_file_and_from_its_folder(file: Path) -> None:
    assert read_recipe(file) == read_recipe(file.parent) == [GRAFT]


def test_a_folder_without_a_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recipe at .*; give a recipe\.json"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema: Input should be 1; .* takes a recipe.json of schema 1"),
        ({"grafts": None}, "grafts: Input should be a valid array"),
        ({"grafts": [{"graft_id": 1}]}, "grafts.0.site: Field required"),
        ({"grafts": [7]}, "grafts.0: Input should be a"),
    ],
)
def test_content_of_another_shape_is_refused(file: Path, changes: dict[str, Any], message: str) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ConfigError, match=message):
        read_recipe(file)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("site", 3), ("graft_id", 1.5), ("graft_id", True), ("graft_id", -1), ("graft_id", 10**30),
        ("init_gain", "0.5"), ("init_gain", float("nan")), ("sources", "layer1.0"), ("later", 1),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_named(file: Path, field: str, value: Any) -> None:
    content = json.loads(file.read_text())
    content["grafts"][0][field] = value
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=rf"recipe\.json is damaged: grafts\.0\.{field}: "):
        read_recipe(file)


def test_a_torn_file_is_refused(file: Path) -> None:
    file.write_text(file.read_text()[:40])
    with pytest.raises(ConfigError, match=r"is damaged: Invalid JSON: .*; morphogenetic\.recipe_path"):
        read_recipe(file)


def test_a_second_command_adds_its_members(tmp_path: Path) -> None:
    write_members(tmp_path / "new", {"a": ["rng_seed=0"], "b": ["rng_seed=1"]})
    write_members(tmp_path / "new", {"b": ["rng_seed=1"], "c": ("rng_seed=2",)})
    assert read_members(tmp_path / "new") == {"a": ["rng_seed=0"], "b": ["rng_seed=1"], "c": ["rng_seed=2"]}


def test_a_damaged_list_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("[")
    with pytest.raises(RunError, match="remove it, the sweep's command writes it again"):
        read_members(tmp_path)
