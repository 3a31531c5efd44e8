"""Defaults follow what was set instead of contradicting it; what was set never moves."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from esper.configs import TolariaConfig, load_config
from esper.configs.compose import compose
from esper.configs.identity import digest
from esper.configs.load import from_hydra, to_yaml
from esper.errors import ConfigError

SHORT = ["optimization.max_epochs=1"]
COSINE = ["optimization.scheduler=cosine"]
NEW = ["morphogenetic=heuristic"]


def configured(*overrides: str) -> TolariaConfig:
    return from_hydra(compose(overrides))


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (SHORT, "optimization.warmup_epochs", 0.1),
        (COSINE, "morphogenetic.growth_until", 0.5),
        (["optimization.decay_fraction=0.5"], "morphogenetic.growth_until", 0.5),
        (["morphogenetic.schedule_at=0.65"], "morphogenetic.growth_until", 0.7),
        ([*NEW, "morphogenetic.growth_from=0.65"], "morphogenetic.growth_until", 0.7),
        ([*NEW, "optimization.max_macs=1e12"], "morphogenetic.schedule_by", "compute"),
        ([*NEW, "morphogenetic.tamiyo=shared"], "bus", "redis"),
    ],
)
def test_a_default_follows_and_says_so(overrides: list[str], key: str, value: object, tmp_path: Path) -> None:
    config = configured(*overrides)
    assert attrgetter(key)(config) == pytest.approx(value)
    (told,) = config.adjusted
    assert told.startswith(f"{key}=")
    assert overrides[-1].partition("=")[0] in told
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load_config(file) == config
    assert told in file.read_text().replace("\n  ", " ")


@pytest.mark.parametrize(
    "overrides",
    [
        [*SHORT, "optimization.warmup_epochs=1"],
        [*COSINE, "morphogenetic.growth_until=0.6"],
        [*NEW, "optimization.max_macs=1e12", "morphogenetic.schedule_by=steps"],
        [*NEW, "morphogenetic.tamiyo=shared", "bus=memory"],
        [*COSINE, "morphogenetic.schedule_at=0.55"],
    ],
)
def test_what_was_set_is_refused_even_if_it_is_the_default(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"allowed|set |needs"):
        configured(*overrides)


def test_what_a_preset_or_a_file_sets_does_not_move(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "optimization: {max_epochs: 1, warmup_epochs: 1.0}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(ConfigError, match="warmup_epochs"):
        configured(f"hydra.searchpath=[{tmp_path}]", "experiment=mine")
    with pytest.raises(ConfigError, match="warmup_epochs"):
        load_config(tmp_path / "file.yaml")
    (tmp_path / "file.yaml").write_text("optimization: {max_epochs: 1}\n")
    assert load_config(tmp_path / "file.yaml").optimization.warmup_epochs == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("overrides", "known"),
    [
        ([], "bb017cad"),
        (["morphogenetic=off", *COSINE], "d2602c21"),
        (["optimization.max_epochs=2"], "7de87bfd"),
        (["optimization.max_macs=1e12"], "aefaf684"),
        (["morphogenetic=off", "optimization.max_macs=1e12"], "5979e79b"),
    ],
)
def test_runs_that_worked_before_keep_their_names(overrides: list[str], known: str) -> None:
    config = configured(*overrides, "model=resnet_small", "dataset=digits")
    assert config.adjusted == []
    assert digest(config) == known


def test_the_composed_configuration_shows_where_defaults_went() -> None:
    composed = compose(SHORT)
    assert composed.optimization.warmup_epochs == pytest.approx(0.1)
    assert OmegaConf.to_container(composed, resolve=False)["morphogenetic"]["growth_until"].startswith(
        "${esper.implied:"
    )
