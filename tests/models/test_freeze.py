"""Frozen parameters: their values, statistics and averages stay bit for bit; what grows in them trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from esper import costs
from esper.contracts.decisions import AdaptationDecision
from esper.errors import ConfigError
from esper.kasmina.modes import evaluating
from esper.models.recompute import not_recomputing
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


def passes(network: nn.Module) -> int:
    """MACs of a forward and a backward pass of one example, in eval mode, as PyTorch counts them."""
    with evaluating(network), not_recomputing(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 8, 8)).sum().backward()
    for p in network.parameters():
        p.grad = None
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("recomputed", [False, True])
def test_what_a_frozen_run_spends_is_what_its_passes_compute_before_and_after_it_grows(
    recomputed: bool, run_dir: Path
) -> None:
    """A module after the first block makes gradients pass through the second, which is frozen, too."""
    config = tiny_config(
        model__freeze=["conv1.*", "bn1.*", "layer1.*"],
        model__depths=[2, 2],
        model__gradient_checkpointing=recomputed,
        morphogenetic__policy="never",
    )

    async def body(trainer: TolariaTrainer) -> None:
        run, ledger = trainer.run, trainer.run.state.ledger

        async def spent_on_an_example() -> float:
            before, step = ledger.train_macs, run.state.global_step
            await trainer.train_epoch()
            return (ledger.train_macs - before) / (run.state.global_step - step) / config.dataset.batch_size

        at_first = passes(run.model)
        assert await spent_on_an_example() == at_first
        await trainer.handle_adaptation_signal(AdaptationDecision(should_adapt=True, site="layer1.0:after"))
        run.growth.before_step()
        grown = passes(run.model)
        assert await spent_on_an_example() == grown
        block = costs.count(run.model.host.get_submodule("layer1.1"), (4, 8, 8)).num_macs
        assert grown - at_first > 2 * (run.life.cost - run.host_cost).num_macs + block
        totals = ledger.totals()
        assert totals["forward_macs"] + totals["backward_macs"] == ledger.train_macs
        steps = run.state.global_step // 2 * config.dataset.batch_size
        assert totals["forward_macs"] == steps * (run.host_cost.num_macs + run.life.cost.num_macs)

    use(config, run_dir, body)
