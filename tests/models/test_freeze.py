"""Frozen parameters: their values, statistics and averages stay bit for bit; what grows in them trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from esper.contracts.decisions import AdaptationDecision
from esper.errors import ConfigError
from esper.tolaria import TolariaTrainer
from tests.conftest import STACK, tiny_config, use
from tests.tolaria.checkpoints.test_resume import assert_same, train


def frozen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items() if name.startswith("host.layer1.")}


def test_what_is_frozen_stays_with_its_statistics_and_what_grows_in_it_trains(run_dir: Path) -> None:
    config = tiny_config(model__freeze=["layer1.*"], optimization__ema_decay=0.9, morphogenetic__policy="never")

    async def body(trainer: TolariaTrainer) -> None:
        model = trainer.run.model
        before = {name: value.clone() for name, value in model.state_dict().items()}
        await trainer.train_epoch()
        await trainer.validate_epoch()
        await trainer.handle_adaptation_signal(AdaptationDecision(should_adapt=True, site="layer1.0:after"))
        newborn = {name: p.detach().clone() for name, p in model.graft_parameters(model.recipe[0])}
        trainer.run.growth.before_step()
        await trainer.train_epoch()
        assert_same(frozen(before), frozen(model.state_dict()))
        after = model.state_dict()
        assert not torch.equal(after["host.layer2.0.conv1.weight"], before["host.layer2.0.conv1.weight"])
        assert any(not torch.equal(after[name], value) for name, value in newborn.items())
        assert trainer.run.step.ema is not None
        with trainer.run.step.ema.applied(step=trainer.run.state.global_step):
            assert_same(frozen(before), frozen(model.state_dict()))

    use(config, run_dir, body)


def test_copies_of_frozen_blocks_train_and_the_run_resumes(tmp_path: Path) -> None:
    config = tiny_config(
        model__freeze=["layer1.*"],
        model__depths=[2, 2],
        **STACK,
        morphogenetic__copy_optimizer_state=True,
    )
    straight, growth = train(config, tmp_path / "straight")
    copies = [name for name in straight if name.startswith("slots.layer1") and name.endswith("|momentum_buffer")]
    assert copies
    assert not any(name.startswith("host.layer1.") and "|" in name for name in straight)
    train(config, tmp_path / "stopped", stop_at=7)
    resumed, resumed_growth = train(config, tmp_path / "stopped")
    assert_same(straight, resumed)
    assert growth == resumed_growth


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("layer9.*", r"model.freeze=layer9.\*: matches no parameter"), ("*", "freezes every parameter")],
)
def test_patterns_that_match_nothing_or_everything_are_refused(pattern: str, expected: str, run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=expected):
        use(tiny_config(model__freeze=[pattern]), run_dir, lambda _: None)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("incubation", ["none", "fit"])
def test_frozen_blocks_are_scored_and_modules_incubated_in_them(incubation: str, run_dir: Path) -> None:
    config = tiny_config(
        model__freeze=["conv1.*", "bn1.*", "layer1.*"],
        model__target_layers=["layer1"],
        morphogenetic__always_score=True,
        morphogenetic__incubation=incubation,
        morphogenetic__incubation_steps=3,
    )
    tensors, _ = train(config, run_dir, stop_at=8)
    assert any(name.startswith("slots.layer1") and name.endswith("|momentum_buffer") for name in tensors)
    assert not any(name.startswith("host.layer1.") and "|" in name for name in tensors)
