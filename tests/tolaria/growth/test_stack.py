"""policy=stack: every stage doubles its depth during a training, by copies of its blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.configs import TolariaConfig
from esper.configs.check import check
from esper.errors import ConfigError
from esper.tolaria import TolariaTrainer
from esper.tolaria.checkpoints.export import export
from tests.conftest import tiny_config, use
from tests.tolaria.checkpoints.test_resume import assert_same, train


def stacking(**changes: Any) -> TolariaConfig:
    """Two blocks a stage, doubled after the first of three epochs."""
    settings: dict[str, Any] = {
        "model__depths": [2, 2],
        "model__site_kinds": ["after"],
        "morphogenetic__policy": "stack",
        "morphogenetic__blueprint_categories": ["copy"],
        "morphogenetic__max_adaptations_per_epoch": 8,
        "morphogenetic__adaptation_cooldown": 0,
        "morphogenetic__always_score": False,
        "morphogenetic__judged": False,
    }
    return tiny_config(**(settings | changes))


@pytest.mark.parametrize(
    ("order", "sources"),
    [
        ("stack", {"layer1.1:after": ("layer1.0", "layer1.1"), "layer2.1:after": ("layer2.1", "layer2.1")}),
        (
            "interleave",
            {
                "layer1.0:after": ("layer1.0",),
                "layer1.1:after": ("layer1.1",),
                "layer2.1:after": ("layer2.1", "layer2.1"),
            },
        ),
    ],
)
def test_all_stages_double_at_once_and_are_kept(run_dir: Path, order: str, sources: dict[str, tuple[str, ...]]) -> None:
    config = stacking(morphogenetic__copy_order=order)
    recipe = use(config, run_dir, lambda trainer: _recipe_after(trainer))
    assert {graft.site: graft.sources for graft in recipe} == sources
    assert {graft.born_step for graft in recipe} == {6}
    result = json.loads((run_dir / "status.json").read_text())["result"]
    assert result["num_kept"] == len(sources)
    assert result["growth_macs"] == 0


async def _recipe_after(trainer: TolariaTrainer) -> list[Any]:
    await trainer.train()
    return trainer.run.model.recipe


def test_two_doublings_make_four_times_the_depth(run_dir: Path) -> None:
    config = stacking(
        optimization__max_epochs=6,
        morphogenetic__schedule_at=[0.15, 0.5],
        morphogenetic__holding_epochs=1,
        optimization__warmup_epochs=0.0,
    )
    use(config, run_dir, lambda trainer: trainer.train())
    folder = export(run_dir, run_dir / "exported")
    assert json.loads((folder / "model.json").read_text())["depths"] == {"layer1": 8, "layer2": 8}


@pytest.mark.parametrize("stop_at", [6, 7, 12])
@pytest.mark.parametrize("with_state", [False, True])
def test_a_run_that_stops_at_or_after_the_copying_resumes_bit_identically(
    run_dir: Path, tmp_path: Path, stop_at: int, with_state: bool
) -> None:
    config = stacking(morphogenetic__copy_optimizer_state=with_state, optimization__ema_decay=0.9)
    straight, counters = train(config, tmp_path / "straight")
    train(config, run_dir, stop_at=stop_at)
    resumed, resumed_counters = train(config, run_dir)
    assert_same(straight, resumed)
    assert counters == resumed_counters


@pytest.mark.parametrize("with_state", [False, True])
def test_copies_begin_with_zero_momentum_or_that_of_their_source(run_dir: Path, with_state: bool) -> None:
    async def momenta(trainer: TolariaTrainer) -> list[tuple[torch.Tensor, torch.Tensor]]:
        await trainer.train_epoch()
        await trainer.handle_end_of_epoch()
        run, state = trainer.run, trainer.run.optimizer.state
        pairs = [pair for graft in run.model.recipe for pair in run.model.copied_parameters(graft)]
        return [(state[old]["momentum_buffer"], state[new]["momentum_buffer"]) for old, new in pairs]

    found = use(stacking(morphogenetic__copy_optimizer_state=with_state), run_dir, momenta)
    assert len(found) == 24  # four copies of two convolutions and two norms
    assert all(bool(old.any()) for old, _ in found)
    assert all(torch.equal(new, old if with_state else torch.zeros_like(old)) for old, new in found)


def test_a_replayed_stack_trains_from_fresh_initial_weights(run_dir: Path, tmp_path: Path) -> None:
    use(stacking(), run_dir, lambda trainer: trainer.train())
    replay = stacking(morphogenetic__policy="replay", morphogenetic__recipe_path=str(run_dir))

    async def first_weights(trainer: TolariaTrainer) -> tuple[list[torch.Tensor], int]:
        kernel = trainer.run.model.slot("layer1.1:after")
        (graft,) = kernel.grafts
        blocks = [trainer.run.model.host.get_submodule("layer1.1"), *kernel.kernel(graft).blocks]
        weights = [block.conv1.weight.detach().clone() for block in blocks]
        await trainer.train()
        return weights, trainer.run.life.cost.num_parameters

    weights, num_parameters = use(replay, tmp_path / "replay", first_weights)
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 3
    result = json.loads((run_dir / "status.json").read_text())["result"]
    assert num_parameters == result["num_parameters"]
    assert export(tmp_path / "replay", tmp_path / "exported").is_dir()


def test_a_stage_without_a_block_to_copy_is_refused(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"no block of layer2 has an output shaped like its input.*two blocks"):
        use(stacking(model__depths=[2, 1]), run_dir, lambda trainer: trainer.train())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blueprint_categories": ["residual"]}, "policy=stack grows copies"),
        ({"policy": "schedule", "blueprint_categories": ["copy", "residual"]}, "copy stands alone"),
        ({"incubation": "fit"}, "copies are trained already"),
    ],
)
def test_settings_that_contradict_copying_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(stacking(**{f"morphogenetic__{name}": value for name, value in changes.items()}))


def test_a_schedule_deepens_one_stage_after_the_other(run_dir: Path) -> None:
    config = stacking(
        optimization__max_epochs=5,
        morphogenetic__policy="schedule",
        morphogenetic__schedule_at=[0.15, 0.4],
        morphogenetic__max_adaptations_per_epoch=1,
    )
    recipe = use(config, run_dir, lambda trainer: _recipe_after(trainer))
    assert [graft.site for graft in recipe] == ["layer1.1:after", "layer2.1:after"]
