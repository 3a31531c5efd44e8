"""The text of a text setting arrives as it was typed, on the command line, in sweeps and from YAML files."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from esper.configs import load_config
from esper.configs.compose import compose
from esper.configs.load import from_hydra
from esper.configs.text import override, quote_text
from esper.errors import ConfigError

LIKE_OTHER_TYPES = ["2026_11_27", "3.10", "1e5", "-0", "1_0.50", "true", "FALSE", "null", "inf", ".5", "12:30", "on"]


@pytest.mark.parametrize("text", LIKE_OTHER_TYPES)
def test_what_looks_like_another_type_stays_the_text(text):
    config = from_hydra(compose([f"description={text}", f"tags=[{text}, {text}]"]))
    assert config.description == text
    assert config.tags == [text, text]


@pytest.mark.parametrize("text", LIKE_OTHER_TYPES)
def test_a_yaml_file_keeps_the_text(text, tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text(
        f"description: {text}\ntags: [a, {text}]\ntracking: {{experiment: '{text}', wandb_project: {text}}}\n"
    )
    config = load_config(file)
    assert (config.description, config.tags) == (text, ["a", text])
    assert (config.tracking.experiment, config.tracking.wandb_project) == (text, text)


@pytest.mark.parametrize("text", ["2026_11_27", "3.10", "true", "1e5"])
def test_a_preset_keeps_the_text(text, tmp_path: Path):
    for name, content in (
        ("experiment", f"# @package _global_\ndescription: {text}\ntags: [{text}]\noptimization: {{max_epochs: 3}}\n"),
        ("tracking", f"name: none\nwandb_project: {text}\nflush_interval_s: 1e1\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.yaml").write_text(content)
    config = from_hydra(compose([f"hydra.searchpath=[{tmp_path}]", "experiment=mine", "tracking=mine"]))
    assert (config.description, config.tags, config.tracking.wandb_project) == (text, [text], text)
    assert (config.optimization.max_epochs, config.tracking.flush_interval_s) == (3, 10)


def test_null_is_nothing_where_that_is_allowed():
    assert quote_text(["tracking.experiment=null"]) == ["tracking.experiment=null"]
    assert from_hydra(compose(["tracking.experiment='null'"])).tracking.experiment == "null"


def test_a_sweep_keeps_the_text_of_each_value():
    assert quote_text(["description=3.10, 1e5,b", "tags=[1.0],[2]"]) == [
        "description='3.10', '1e5',b",
        "tags=['1.0'],['2']",
    ]
    assert quote_text(["description=choice(3.10,x)"]) == ["description=choice('3.10',x)"]
    assert quote_text(["description=range(1,3)"]) == ["description=range(1,3)"]


def test_other_settings_are_left_alone():
    others = ["rng_seed=1_000", "optimization.learning_rate=1e-3", "--config-dir=1.0", "tags=[", "description='1"]
    assert quote_text(others) == others


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30))
def test_a_printed_override_can_be_pasted(text):
    (pasted,) = shlex.split(override("description", text))
    (parsed,) = OverridesParser.create().parse_overrides([pasted])
    assert parsed.value() == text


@pytest.mark.parametrize("given", ["hydra.job.name=Bücher", "dataset.data_dir='/data/it is", 'description="a'])
def test_a_refused_override_is_printed_as_it_can_be_written(given):
    with pytest.raises(ConfigError, match="write ") as error:
        compose([given])
    pasted = shlex.split(str(error.value).partition("write ")[2])
    key, _, value = given.partition("=")
    composed = compose([*pasted, "dataset=digits"])
    assert OmegaConf.select(composed, key) == value


ODD = [
    "Bücher",
    "a b",
    "a#b",
    "it's",
    'a "b"',
    "~tilde~",
    "a=b",
    "(alt)",
    "fotos(1)",
    "[x]",
    "{x}",
    "a&b;c!",
    "a%20b",
    "日本",
    "x]",
    "a^b`c",
]


def test_paths_are_what_was_typed(tmp_path: Path):
    for name in ODD:
        given = f"{tmp_path}/{name}"
        typed = [
            f"{key}={given}" for key in ("dataset.data_dir", "model.init_from", "hydra.run.dir", "hydra.sweep.dir")
        ]
        for parsed in OverridesParser.create().parse_overrides(quote_text(typed)):
            assert parsed.value() == given, parsed.input_line
    composed = compose([f'{key}={tmp_path}/it\'s "a" #1=ü' for key in ("dataset.data_dir", "hydra.run.dir")])
    assert composed.dataset.data_dir == composed.hydra.run.dir == f'{tmp_path}/it\'s "a" #1=ü'


def test_a_tilde_is_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    composed = compose(["hydra.run.dir=~/my runs", "dataset.data_dir=~/Bücher", "dataset=digits"])
    assert composed.hydra.run.dir == "/home/me/my runs"
    assert from_hydra(composed).dataset.data_dir == "/home/me/Bücher"


def test_a_comma_separates_the_values_of_a_sweep_of_odd_paths():
    assert quote_text(["dataset.data_dir=/ä, /ö"]) == ["dataset.data_dir='/ä','/ö'"]
    assert quote_text(["tags=[für,b c]", "tags=ä,b"]) == ["tags=['für','b c']", "tags=['ä'],['b']"]


@pytest.mark.parametrize("given", ["dataset.data_dir=/a,b", "dataset.data_dir=/ä,it's", "tags=ä,b", "tags=[x],y"])
def test_several_values_are_refused_with_what_makes_them_one(given):
    with pytest.raises(ConfigError, match="several values; add -m to run each, or write ") as error:
        compose([given])
    (pasted,) = shlex.split(str(error.value).partition("write ")[2])
    key, _, value = given.partition("=")
    found = OmegaConf.select(compose([pasted]), key)
    assert found == (value if key == "dataset.data_dir" else {"tags=ä,b": ["ä", "b"], "tags=[x],y": ["x", "y"]}[given])


def test_a_single_value_is_a_list_of_one():
    config = from_hydra(compose(["morphogenetic=schedule", "morphogenetic.schedule_at=0.5", "tags=3.10"]))
    assert (config.morphogenetic.schedule_at, config.tags) == ([0.5], ["3.10"])
    assert quote_text(["morphogenetic.schedule_at=0.3, [0.5]"]) == ["morphogenetic.schedule_at=[0.3], [0.5]"]
    assert quote_text(["morphogenetic.schedule_at=choice(0.3,0.5)"]) == [
        "morphogenetic.schedule_at=choice([0.3],[0.5])"
    ]
    others = ["morphogenetic.schedule_at=${x}", "morphogenetic.schedule_at=[]", "model.widths=[4,8]"]
    assert quote_text(others) == others
