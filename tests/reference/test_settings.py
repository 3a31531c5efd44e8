"""`esper help` and docs/settings.md: complete, current, and the defaults are those of a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from esper.cli import main
from esper.configs.compose import compose
from esper.configs.schema import settings
from esper.configs.tolaria import TolariaConfig
from esper.reference.command import explain_setting, settings_page
from esper.reference.settings import groups
from esper.tracking.metrics import parameters

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
ALL = {setting.key: setting for group in groups().values() for setting in group.settings}


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "run: python scripts/settings_page.py"


def test_every_setting_is_there_with_the_default_of_a_run():
    composed = compose([])
    names = {name for name, _, _ in settings(TolariaConfig) if not OmegaConf.is_dict(OmegaConf.select(composed, name))}
    dicts = {"dataset.options", "model.options", "optimization.optimizer_options"}
    assert {key for key in ALL if not key.startswith("hydra.")} == names | dicts
    for key, setting in ALL.items():
        if not key.startswith("hydra."):
            assert OmegaConf.select(composed, key) == setting.default, key


def test_every_value_of_a_choice_is_a_known_setting():
    for group in groups().values():
        for choice in group.choices:
            assert {key for key in choice.values if not key.startswith("hydra.sweeper.")} <= set(ALL), choice.name


def test_a_choice_that_is_composed_gives_what_is_printed():
    for group, name in (("optimization", "adamw"), ("morphogenetic", "stack")):
        composed = parameters(OmegaConf.to_container(compose([f"{group}={name}"]), resolve=False))
        (choice,) = [one for one in groups()[group].choices if one.name == f"{group}={name}"]
        assert parameters(dict(choice.values)).items() <= composed.items()


def test_a_preset_tells_the_choices_of_other_groups_that_it_begins_with():
    text = "\n".join(explain_setting("experiment=quickstart"))
    for choice in ("model=resnet_small", "dataset=digits", "morphogenetic=schedule"):
        assert f"begins with {choice}" in text


@pytest.mark.parametrize("name", ["optimization.warmup_epochs", "warmup_epochs", "optimization.warmup_epochs=3"])
def test_a_setting_is_explained(name):
    text = " ".join(" ".join(explain_setting(name)).split())
    for part in (
        "optimization.warmup_epochs epochs of linear warm-up from zero",
        "allowed a number, at least 0",
        "default 1, from esper/configs/optimization.py; follows other settings",
        "experiment=debug to 0.5",
    ):
        assert part in text


def test_a_name_in_several_groups_a_group_and_a_choice_are_explained():
    found = [line for line in explain_setting("timeout_s") if line.endswith("timeout_s")]
    assert {"dataset.timeout_s", "redis.timeout_s", "ranks.timeout_s"} <= set(found)
    group = explain_setting("optimization")
    assert "optimization=sgd (default)" in group
    assert "optimization.learning_rate=0.1" in group
    assert "    optimization.learning_rate=0.001" in explain_setting("optimization=adamw")
    assert any("max_running" in line for line in explain_setting("hydra/launcher"))
    overview = explain_setting("")
    assert all(any(line.startswith(name) for line in overview) for name in groups() if name)


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("optimization.warmup_epoch", "optimization.warmup_epochs"),
        ("lerning_rate", "optimization.learning_rate"),
        ("optimisation", "optimization"),
        ("morphogenetic=aggresive", "aggressive"),
        ("xyzzy", "esper help lists them"),
    ],
)
def test_an_unknown_name_is_refused_with_similar_ones(name, similar, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["help", name])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert similar in error
    assert error.count("\n") == 1


def test_no_line_of_the_page_is_long():
    assert max(map(len, PAGE.read_text(encoding="utf-8").splitlines())) <= 120
    assert not re.search(r"esper\.implied", PAGE.read_text(encoding="utf-8"))
