"""The moving average of the weights: its formula, newborns, and that training does not notice it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from esper.contracts.decisions import Action, AdaptationDecision
from esper.tolaria import TolariaTrainer
from esper.tolaria.ema import WeightEMA
from esper.tolaria.optim import set_learning_rates
from tests.conftest import journal_of, tiny_config, use
from tests.tolaria.checkpoints.test_resume import assert_same, train

DECAY = 0.8


def averaged(average: WeightEMA, model: nn.Module, *, step: int) -> dict[str, Tensor]:
    with average.applied(step=step):
        return {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_it_is_the_weighted_mean_of_the_weights_seen() -> None:
    model = nn.Linear(3, 2)
    average = WeightEMA(model, decay=DECAY)
    seen = []
    for _ in range(5):
        nn.init.normal_(model.weight)
        average.update()
        seen.append(model.weight.detach().clone())
    shares = torch.tensor([DECAY**i for i in range(5)][::-1])
    expected = (torch.stack(seen) * (shares / shares.sum())[:, None, None]).sum(0)
    assert torch.allclose(averaged(average, model, step=5)["weight"], expected, atol=1e-6)


def test_the_weights_come_back_bit_identical() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    average = WeightEMA(model, decay=DECAY)
    average.update()
    model(torch.randn(2, 3, 5, 5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inside = averaged(average, model, step=1)
    assert not torch.equal(inside["1.running_mean"], before["1.running_mean"])
    assert_same(before, model.state_dict())


def test_the_average_of_a_newborn_is_over_its_own_life(run_dir: Path) -> None:
    config = tiny_config(optimization__ema_decay=0.99, morphogenetic__policy="never")

    async def body(trainer: TolariaTrainer) -> None:
        await trainer.train_epoch()
        await trainer.handle_adaptation_signal(AdaptationDecision(should_adapt=True, site="layer1.0:after"))
        run, state = trainer.run, trainer.run.state
        assert run.step.ema is not None
        run.growth.before_step()
        set_learning_rates(run.optimizer, run.schedule(run.state.global_step), step=run.state.global_step)
        run.step.forward_backward_update(epoch=1, index=0, step=state.global_step)
        newborn = [name for name, _ in run.model.graft_parameters(run.model.recipe[0])]
        now = {name: run.model.state_dict()[name].clone() for name in newborn}
        assert newborn
        mean = averaged(run.step.ema, run.model, step=state.global_step + 1)
        assert all(torch.allclose(mean[name], now[name], rtol=1e-4, atol=1e-6) for name in newborn)

    use(config, run_dir, body)


def test_what_is_culled_leaves_the_average_and_begins_it_anew(run_dir: Path) -> None:
    config = tiny_config(optimization__ema_decay=0.99, morphogenetic__policy="never")

    async def body(trainer: TolariaTrainer) -> None:
        grow = AdaptationDecision(should_adapt=True, site="layer1.0:after")
        average = trainer.run.step.ema
        assert average is not None
        host = set(average.sums)
        await trainer.handle_adaptation_signal(grow)
        assert set(average.sums) > host
        trainer.run.growth.before_step()
        await trainer.train_epoch()
        cull = AdaptationDecision(should_adapt=True, site="layer1.0:after", action=Action.CULL)
        assert await trainer.handle_adaptation_signal(cull)
        assert set(average.sums) == host
        before = {name: value.clone() for name, value in trainer.run.model.state_dict().items()}
        assert_same(before, averaged(average, trainer.run.model, step=trainer.run.state.global_step))

    use(config, run_dir, body)


def test_an_average_is_empty_until_a_step_was_taken_in() -> None:
    average = WeightEMA(nn.Linear(3, 2), decay=DECAY)
    average.update()
    assert not average.is_empty(step=1)
    average.restart(step=1)
    assert average.is_empty(step=1)


def test_an_average_changes_what_is_validated_and_nothing_that_is_trained(tmp_path: Path) -> None:
    def validated(path: Path) -> list[float]:
        return [line["val_loss"] for line in journal_of(path, "validation")]

    plain, _ = train(tiny_config(morphogenetic__policy="never"), tmp_path / "plain")
    config = tiny_config(morphogenetic__policy="never", optimization__ema_decay=0.9)
    kept, _ = train(config, tmp_path / "kept")
    assert_same(plain, {name: value for name, value in kept.items() if not name.startswith("average|")})
    assert validated(tmp_path / "plain") != validated(tmp_path / "kept")


def test_a_run_with_an_average_resumes_bit_identically(tmp_path: Path) -> None:
    config = tiny_config(optimization__ema_decay=0.9)
    whole, _ = train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_at=9)
    resumed, _ = train(config, tmp_path / "parts")
    assert any(name.startswith("average|") for name in whole)
    assert_same(whole, resumed)
