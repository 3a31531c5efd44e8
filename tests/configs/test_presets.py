"""What the choices of conf/morphogenetic are, as composed by `esper-train`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from esper.configs import TolariaConfig
from esper.configs.compose import compose
from esper.configs.load import from_hydra

WITHOUT_FILES = "dataset=synthetic"


def composed(*overrides: str) -> TolariaConfig:
    cfg: Any = compose([WITHOUT_FILES, *overrides])
    return from_hydra(cfg)


def test_growing_by_default_doubles_every_stage_once_by_copies() -> None:
    growth = composed().morphogenetic
    assert (growth.policy, growth.schedule_by, growth.schedule_at) == ("stack", "compute", [0.3])
    assert composed() == composed("morphogenetic=default") == composed("morphogenetic=stack")


def test_aggressive_differs_from_default_in_a_second_doubling_only() -> None:
    default, aggressive = composed(), composed("morphogenetic=aggressive")
    assert aggressive.morphogenetic.schedule_at == [0.15, 0.35]
    growth = dataclasses.replace(aggressive.morphogenetic, schedule_at=default.morphogenetic.schedule_at)
    assert dataclasses.replace(aggressive, morphogenetic=growth) == default


@pytest.mark.parametrize("preset", ["heuristic", "conservative"])
def test_presets_of_new_modules_score_and_judge(preset: str) -> None:
    config = composed(f"morphogenetic={preset}")
    growth = config.morphogenetic
    assert (growth.policy, growth.judged, growth.grows_copies) == ("heuristic", True, False)
    assert config.model.site_kinds == ["beside", "after"]


def test_heuristic_is_what_default_was_in_0_1_0() -> None:
    assert composed("morphogenetic=heuristic") == TolariaConfig(dataset=composed().dataset)


@pytest.mark.parametrize("experiment", ["debug", "quickstart", "resnet18_cifar10_morphogenetic", "fair_comparison"])
def test_experiments_compose_with_their_presets(experiment: str) -> None:
    arm = ["arm=grown"] if experiment == "fair_comparison" else []
    assert composed(f"experiment={experiment}", *arm).morphogenetic.enable_tamiyo


@pytest.mark.parametrize("widths", [[8], [4, 8], [16, 32, 64], [4, 8, 8, 16, 16]])
def test_every_stage_of_a_small_resnet_may_grow_whatever_its_widths(widths: list[int]) -> None:
    sizes = [f"model.widths={widths}", f"model.depths={[2] * len(widths)}"]
    model = composed("model=resnet_small", *sizes).model
    assert model.target_layers == ["layer1", "layer2", "layer3", "layer4", "layer5"][: len(widths)]
    chosen = composed("model=resnet_small", *sizes, "model.target_layers=[layer1]")
    assert chosen.model.target_layers == ["layer1"]
