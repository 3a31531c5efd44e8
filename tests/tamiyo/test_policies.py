from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from esper import costs, tezzeret, urza
from esper.configs import MorphogeneticConfig
from esper.configs.morphogenetic import POLICIES
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.health import HealthSignal
from esper.contracts.lifecycle import SeedLifecycleState as S
from esper.errors import ConfigError
from esper.tamiyo import LocalTamiyo
from esper.tamiyo.policies.eligible import eligible
from esper.tamiyo.policies.learned import FEATURES, SCHEMA, Learned, cost, load_policy


def signal(site: str = "layer1.0:after", **changes: Any) -> HealthSignal:
    block, kind = site.split(":")
    base = HealthSignal(
        site=site,
        layer=block.split(".")[0],
        kind=kind,
        epoch=4,
        progress=0.4,
        in_shape=(8, 4, 4),
        out_shape=(8, 4, 4),
        state=S.DORMANT,
        state_epoch=0,
        num_kernels=0,
        has_room=True,
        last_adaptation_epoch=None,
        score=1.0,
        health=1.0,
        activation_variance=1.0,
        gradient_norm=1.0,
    )
    return dataclasses.replace(base, **changes)


def decide(signals: Sequence[HealthSignal], **config: Any) -> Any:
    return LocalTamiyo(MorphogeneticConfig(**config), rng_seed=config.pop("rng_seed", 0)).decide(signals)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": S.HOLDING},
        {"state": S.EMBARGOED},
        {"has_room": False},
        {"last_adaptation_epoch": 2},
        {"progress": 0.6},
    ],
)
def test_a_site_that_is_not_dormant_full_cooling_down_or_too_late_is_not_eligible(changes: dict[str, Any]) -> None:
    config = MorphogeneticConfig(adaptation_cooldown=3, growth_until=0.6)
    assert len(eligible([signal()], config)) == 1
    assert eligible([signal(**changes)], config) == []


def test_the_cooldown_ends_after_its_epochs() -> None:
    config = MorphogeneticConfig(adaptation_cooldown=3)
    assert len(eligible([signal(last_adaptation_epoch=1)], config)) == 1


def test_a_site_without_an_allowed_blueprint_is_not_eligible() -> None:
    only_attention = MorphogeneticConfig(blueprint_categories=["attention"])
    assert eligible([signal("layer1.0:beside")], only_attention) == []
    assert len(eligible([signal()], only_attention)) == 1


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "learned"])
def test_every_policy_of_the_table_makes_decisions(name: str) -> None:
    assert isinstance(decide([signal()], policy=name), AdaptationDecision)


def test_never_grows_nothing() -> None:
    assert not decide([signal(health=0.01)], policy="never").should_adapt


class TestSchedule:
    config: dict[str, Any] = {"policy": "schedule", "schedule_at": [0.35, 0.4]}  # noqa: RUF012

    def test_a_share_is_due_at_the_first_consultation_after_it(self) -> None:
        assert not decide([signal(epoch=3, progress=0.3)], **self.config).should_adapt
        assert decide([signal()], **self.config).should_adapt
        assert not decide([signal(epoch=5, progress=0.5)], **self.config).should_adapt

    def test_each_share_grows_one_module(self) -> None:
        served = signal("layer2.0:after", state=S.HOLDING, state_epoch=4)
        older = signal("layer3.0:after", state=S.HOLDING, state_epoch=2)
        assert decide([signal(), served, older], **self.config).should_adapt
        both = signal("layer3.0:after", state=S.HOLDING, state_epoch=4)
        assert not decide([signal(), served, both], **self.config).should_adapt

    def test_successive_shares_cycle_through_the_sites(self) -> None:
        sites = [signal(f"layer{i}.0:after") for i in (1, 2)]
        first = decide(sites, policy="schedule", schedule_at=[0.35])
        second = decide(sites, policy="schedule", schedule_at=[0.1, 0.35])
        assert (first.site, second.site) == ("layer1.0:after", "layer2.0:after")

    def test_shares_between_two_consultations_are_not_missed(self) -> None:
        assert decide([signal()], policy="schedule", schedule_at=[0.15], adaptation_frequency=3).should_adapt
        assert not decide([signal()], policy="schedule", schedule_at=[0.15], adaptation_frequency=2).should_adapt


class TestRandom:
    def test_the_same_seed_draws_the_same(self) -> None:
        sites = [signal(f"layer{i}.0:after", epoch=e) for i in (1, 2, 3) for e in (4,)]
        draws = [decide(sites, policy="random") for _ in range(3)]
        assert draws[0] == draws[1] == draws[2]

    def test_epochs_draw_differently_and_about_half_of_them_grow(self) -> None:
        draws = [decide([signal(f"layer{i}.0:after", epoch=e) for i in (1, 2, 3)], policy="random") for e in range(200)]
        grown = [draw for draw in draws if draw.should_adapt]
        assert 70 <= len(grown) <= 130
        assert {draw.site for draw in grown} == {f"layer{i}.0:after" for i in (1, 2, 3)}
        assert len({draw.blueprint_id for draw in grown}) > 5


class TestHeuristic:
    def test_the_site_that_stands_out_most_grows_the_preferred_blueprint(self) -> None:
        sites = [signal(health=0.2), signal("layer2.0:after", health=0.1), signal("layer3.0:after", health=1.0)]
        decision = decide(sites, policy="heuristic", blueprint_categories=["attention"])
        assert (decision.site, decision.blueprint_id) == ("layer2.0:after", "spatial_self_attention")
        assert decision.confidence == pytest.approx(0.9)

    def test_nothing_grows_if_no_site_stands_out(self) -> None:
        decision = decide([signal(health=0.31), signal("layer2.0:after", health=1.0)], health_threshold=0.3)
        assert not decision.should_adapt
        assert "0.31, above 0.3" in decision.reasoning

    def test_a_health_at_the_threshold_is_enough(self) -> None:
        assert decide([signal(health=0.3)], health_threshold=0.3).should_adapt

    def test_a_site_that_was_not_measured_is_no_candidate(self) -> None:
        assert not decide([signal(health=None)], health_threshold=1.0).should_adapt


def test_a_missing_policy_file_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; make one with: esper simic"):
        decide([], policy="learned", tamiyo_policy_path=str(tmp_path / "none.safetensors"))


def test_a_file_that_is_not_a_policy_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ConfigError, match="not a policy"):
        decide([], policy="learned", tamiyo_policy_path=str(tmp_path / "p"))


def write_policy(path: Path, *, metadata: Any = None, bias: float = 0.0, **weights: float) -> Path:
    values = [weights.get(name, 0.0) for name in FEATURES]
    tensors = {
        "weights": torch.tensor(values, dtype=torch.float64),
        "bias": torch.tensor(bias, dtype=torch.float64),
        "mean": torch.zeros(len(FEATURES), dtype=torch.float64),
        "deviation": torch.ones(len(FEATURES), dtype=torch.float64),
    }
    header = {"schema": SCHEMA, "features": FEATURES} if metadata is None else metadata
    save_file(tensors, path, metadata={"esper": json.dumps(header)})
    return path


@pytest.mark.parametrize("metadata", [{"schema": SCHEMA + 1, "features": FEATURES}, {"schema": SCHEMA}, []])
def test_a_policy_of_another_version_is_an_error(tmp_path: Path, metadata: Any) -> None:
    path = write_policy(tmp_path / "p", metadata=metadata)
    with pytest.raises(ConfigError, match="made for another version of Esper; make one with: esper simic"):
        load_policy(path, MorphogeneticConfig())


def test_a_policy_with_nan_or_inf_is_an_error(tmp_path: Path) -> None:
    path = write_policy(tmp_path / "p", depth=float("nan"))
    with pytest.raises(ConfigError, match="contains NaN or Inf"):
        load_policy(path, MorphogeneticConfig())


class TestLearned:
    def learned(self, tmp_path: Path, *, improvement_threshold: float = 0.02, **model: float) -> Learned:
        config = MorphogeneticConfig(improvement_threshold=improvement_threshold, blueprint_categories=["residual"])
        return load_policy(write_policy(tmp_path / "p", **model), config)

    def test_the_cheapest_of_equal_gains_grows(self, tmp_path: Path) -> None:
        decision = self.learned(tmp_path, bias=0.1).decide([signal(), signal("layer2.0:after")])
        assert decision.blueprint_id == "conv1x1"
        assert decision.confidence == pytest.approx(0.1)

    def test_a_blueprint_predicted_to_be_culled_is_no_candidate_however_cheap(self, tmp_path: Path) -> None:
        # Most per cost has conv1x1, but its 0.2 is below the threshold; next comes depthwise with 0.3.
        policy = self.learned(tmp_path, improvement_threshold=0.25, complexity=0.1)
        assert policy.decide([signal()]).blueprint_id == "depthwise"

    def test_the_site_with_the_larger_predicted_gain_grows(self, tmp_path: Path) -> None:
        policy = self.learned(tmp_path, bias=0.1, log_score=0.01)
        assert policy.decide([signal(), signal("layer2.0:after", score=9.0)]).site == "layer2.0:after"

    def test_nothing_grows_if_every_blueprint_is_predicted_to_be_culled(self, tmp_path: Path) -> None:
        decision = self.learned(tmp_path, bias=0.02).decide([signal()])
        assert not decision.should_adapt
        assert "0.020, not above 0.02" in decision.reasoning

    def test_a_site_that_was_not_measured_is_no_candidate(self, tmp_path: Path) -> None:
        assert not self.learned(tmp_path, bias=0.5).decide([signal(score=None)]).should_adapt

    def test_costs_are_those_of_the_kernel_that_would_be_forged(self) -> None:
        blueprint, in_shape, out_shape = urza.get("basic_block"), (6, 8, 8), (12, 4, 4)
        kernel = tezzeret.build_kernel(
            "basic_block", in_shape=in_shape, out_shape=out_shape, init_seed=0, output_scale=0.5
        )
        expected = costs.count(kernel, in_shape).num_macs + 12 * 4 * 4
        assert cost(blueprint, in_shape, out_shape) == expected


def test_a_site_is_eligible_only_for_blueprints_within_the_budget() -> None:
    config = MorphogeneticConfig(blueprint_categories=["residual"])
    costs = {name: tezzeret.kernel_cost(name, (8, 4, 4), (8, 4, 4)).num_macs for name in ("basic_block", "conv1x1")}
    (free,) = eligible([signal()], config)
    (tight,) = eligible([signal(macs_left=costs["conv1x1"])], config)
    assert free.blueprints[0].blueprint_id == "basic_block"
    assert {blueprint.blueprint_id for blueprint in tight.blueprints} == {
        blueprint.blueprint_id
        for blueprint in free.blueprints
        if tezzeret.kernel_cost(blueprint.blueprint_id, (8, 4, 4), (8, 4, 4)).num_macs <= costs["conv1x1"]
    }
    assert eligible([signal(parameters_left=1)], config) == []


def test_the_heuristic_names_the_second_of_the_same_kind_for_a_fork_only_on_request() -> None:
    signals = [
        signal("layer1.0:beside", health=0.1),
        signal("layer1.0:after", health=0.15),
        signal("layer2.0:beside", health=0.9),
    ]
    assert decide(signals).alternatives == ()
    asked = decide(signals, fork_steps=10)
    assert (asked.site, asked.alternatives) == ("layer1.0:beside", (("layer2.0:beside", "basic_block"),))
