"""Unknown, mistyped or hostile YAML is refused in one line."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from esper.configs import TolariaConfig
from esper.configs.compose import compose
from esper.configs.load import from_hydra, load_config, to_yaml
from esper.configs.paths import absolute_paths
from esper.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def refusal(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, TolariaConfig)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_written_configuration_is_read_back_equal(path: Path):
    config = TolariaConfig(description="1e3: no number, # no comment", tags=["yes", "0x10", ""])
    config.optimization.learning_rate = 1e-5
    config.model.widths = [4, 8]
    config.model.depths = [1, 2]
    path.write_text(to_yaml(config))
    assert load_config(path, TolariaConfig) == absolute_paths(config)


def test_settings_missing_from_a_file_have_their_defaults(path: Path):
    path.write_text("optimization: {max_epochs: 7}\n")
    config = load_config(path, TolariaConfig)
    assert config.optimization.max_epochs == 7
    assert config.dataset == absolute_paths(TolariaConfig()).dataset


def test_an_unknown_key_gets_the_nearest_name(path: Path):
    assert refusal(path, "optimization: {max_epoch: 7}").endswith("did you mean optimization.max_epochs?")


def test_a_key_of_another_group_is_suggested(path: Path):
    assert refusal(path, "learning_rate: 0.1").endswith("did you mean optimization.learning_rate?")


def test_a_wrong_type_is_refused_in_one_line(path: Path):
    assert refusal(path, "optimization: {max_epochs: many}") == "optimization.max_epochs=many: must be a whole number"


def test_values_are_checked(path: Path):
    assert "allowed is at least 1" in refusal(path, "optimization: {max_epochs: 0}")


def test_an_empty_file_is_all_defaults(path: Path):
    path.touch()
    assert load_config(path, TolariaConfig) == absolute_paths(TolariaConfig())


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words"])
def test_a_file_without_settings_is_refused(path: Path, text: str):
    refusal(path, text)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml", TolariaConfig)


def test_broken_yaml_is_named_with_its_file(path: Path):
    assert str(path) in refusal(path, "model: [1, 2\n")


def test_bytes_that_are_not_utf8_are_refused(path: Path):
    path.write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(path, TolariaConfig)


def test_an_alias_bomb_is_refused_at_once(path: Path):
    levels = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    levels += [f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    start = time.process_time()
    assert "aliases" in refusal(path, "\n".join(levels))
    assert time.process_time() - start < 2


@pytest.mark.parametrize("text", ["[" * 5000, "a: " + "{b: " * 100 + "1" + "}" * 100])
def test_deep_nesting_is_refused(path: Path, text: str):
    assert "nested" in refusal(path, text)


def test_a_huge_file_is_refused(path: Path):
    assert "KiB" in refusal(path, "#" * (300 * 1024))


def test_python_tags_are_not_executed(path: Path, tmp_path: Path):
    canary = tmp_path / "canary"
    refusal(path, f"description: !!python/object/apply:pathlib.Path.touch [{canary}]")
    assert not canary.exists()


def test_home_is_expanded_in_paths(path: Path):
    path.write_text("dataset: {data_dir: ~/images}\nlogging: {log_dir: ~/logs}\n")
    config = load_config(path, TolariaConfig)
    assert config.dataset.data_dir == str(Path.home() / "images")
    assert config.logging.log_dir == str(Path.home() / "logs")


def test_a_key_added_with_plus_is_refused():
    cfg = OmegaConf.structured(TolariaConfig)
    OmegaConf.set_struct(cfg, False)
    OmegaConf.update(cfg, "optimization.lr", 0.1, force_add=True)
    with pytest.raises(ConfigError, match=r"optimization\.lr: no such setting"):
        from_hydra(cfg)


def test_the_hydra_node_is_dropped():
    cfg = OmegaConf.create({"rng_seed": 3, "hydra": {"job": {"id": "???"}, "x": "${nowhere}"}})
    assert from_hydra(cfg) == absolute_paths(TolariaConfig(rng_seed=3))


def test_an_environment_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ESPER_TEST_NOPE", raising=False)
    with pytest.raises(ConfigError, match=r"description: .*ESPER_TEST_NOPE"):
        from_hydra(OmegaConf.create({"description": "${oc.env:ESPER_TEST_NOPE}"}))


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("model=tab", "model=plugin model.name=tab"),
        ("dataset=blobs", "dataset=plugin dataset.source=blobs"),
        ("task=mae", "task.name=mae"),
        ("model=resnet81", "did you mean resnet18?"),
    ],
)
def test_a_choice_that_there_is_not_is_told_from_what_a_plugin_registers(given: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{given}: allowed are .*; .*{re.escape(remedy)}$"):
        compose([given])
