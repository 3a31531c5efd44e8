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
from esper.inference.export import export
from esper.models import is_checkpointed
from esper.tolaria import TolariaTrainer
from tests.conftest import STACK, tiny_config, use
from tests.text import text_config, write_texts
from tests.tolaria.checkpoints.test_resume import assert_same, train


def stacking(**changes: Any) -> TolariaConfig:
    """Two blocks a stage, doubled after the first of three epochs."""
    return tiny_config(**({"model__depths": [2, 2], "model__site_kinds": ["after"]} | STACK | changes))


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


TWICE: dict[str, Any] = {
    "optimization__max_epochs": 6,
    "morphogenetic__schedule_at": [0.15, 0.5],
    "morphogenetic__copy_optimizer_state": True,
}


def depths(run_dir: Path) -> dict[str, int]:
    found = json.loads((export(run_dir, run_dir / "exported") / "model.json").read_text())["depths"]
    assert isinstance(found, dict)
    return found


def test_two_doublings_make_four_times_the_depth_and_can_be_replayed(run_dir: Path, tmp_path: Path) -> None:
    recipe = use(stacking(**TWICE), run_dir, _recipe_after)
    assert [graft.sources for graft in recipe if graft.site == "layer1.1:after"] == [
        ("layer1.0", "layer1.1"),
        ("layer1.0", "layer1.1", "layer1.1+1", "layer1.1+2"),
    ]
    assert depths(run_dir) == {"layer1": 8, "layer2": 8}
    replay = stacking(morphogenetic__policy="replay", morphogenetic__recipe_path=str(run_dir))
    use(replay, tmp_path / "replay", lambda trainer: trainer.train())
    assert depths(tmp_path / "replay") == {"layer1": 8, "layer2": 8}


@pytest.mark.parametrize(("stop_at", "init"), [(17, "trained"), (18, "trained"), (20, "trained"), (18, "shared")])
def test_a_run_that_stops_around_its_second_doubling_resumes_bit_identically(
    run_dir: Path, tmp_path: Path, stop_at: int, init: str
) -> None:
    config = stacking(**TWICE, morphogenetic__copy_init=init)
    straight, counters = train(config, tmp_path / "straight")
    train(config, run_dir, stop_at=stop_at)
    resumed, resumed_counters = train(config, run_dir)
    assert_same(straight, resumed)
    assert counters == resumed_counters


def test_doublings_that_follow_too_soon_are_announced_as_lost(run_dir: Path) -> None:
    config = stacking(**TWICE | {"morphogenetic__holding_epochs": 3})
    use(config, run_dir, lambda trainer: trainer.train())
    assert (
        "schedule_at=[0.5]: the copies of the share before are still held then, so this share is skipped"
        in (run_dir / "journal.jsonl").read_text()
    )
    assert depths(run_dir) == {"layer1": 4, "layer2": 4}


@pytest.mark.parametrize("num_blocks", [[3, 3], [3, 4]])
def test_longer_and_unequal_stages_double_too(run_dir: Path, num_blocks: list[int]) -> None:
    use(stacking(model__depths=num_blocks), run_dir, lambda trainer: trainer.train())
    assert list(depths(run_dir).values()) == [2 * num for num in num_blocks]


def test_recomputed_copies_train_bit_identically_and_are_recomputed_in_a_replay_too(
    run_dir: Path, tmp_path: Path
) -> None:
    plain, _ = train(stacking(), tmp_path / "plain")
    saving, _ = train(stacking(model__gradient_checkpointing=True), run_dir)
    assert_same(plain, saving)

    async def body(trainer: TolariaTrainer) -> list[torch.nn.Module]:
        model = trainer.run.model
        copies = [block for graft in model.recipe for block in model.slot(graft.site).kernel(graft).blocks]
        return [model.host.get_submodule("layer1.0"), *copies]

    replay = stacking(
        model__gradient_checkpointing=True, morphogenetic__policy="replay", morphogenetic__recipe_path=str(run_dir)
    )
    assert [is_checkpointed(block) for block in use(replay, tmp_path / "replay", body)] == [True] * 5


@pytest.mark.parametrize("stop_at", [6, 7, 12])
@pytest.mark.parametrize(("with_state", "init"), [(False, "trained"), (True, "trained"), (True, "shared")])
def test_a_run_that_stops_at_or_after_the_copying_resumes_bit_identically(
    run_dir: Path, tmp_path: Path, stop_at: int, with_state: bool, init: str
) -> None:
    config = stacking(
        morphogenetic__copy_optimizer_state=with_state, morphogenetic__copy_init=init, optimization__ema_decay=0.9
    )
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


def residual_deviations(trainer: TolariaTrainer) -> list[float]:
    """Standard deviations of what each block of a GPT adds to the residual stream, in forward order."""
    model = trainer.run.model
    copies = [block for graft in model.recipe for block in model.slot(graft.site).kernel(graft).blocks]
    return [float(block.mlp.out.weight.detach().std()) for block in [*model.host.blocks, *copies]]


def test_fresh_weights_have_the_size_of_those_of_a_network_built_with_the_final_depth(
    run_dir: Path, tmp_path: Path
) -> None:
    texts = write_texts(tmp_path / "texts")
    use(text_config(texts, model__width=64), run_dir, lambda trainer: trainer.train())
    replay = {"morphogenetic__policy": "replay", "morphogenetic__recipe_path": str(run_dir)}

    async def first(trainer: TolariaTrainer) -> list[float]:
        return residual_deviations(trainer)

    whole = use(text_config(texts, model__width=64, **replay), tmp_path / "whole", first)
    assert whole == pytest.approx([0.02 / 8**0.5] * 4, rel=0.03)


def test_fresh_copies_in_a_trained_network_leave_its_own_weights(run_dir: Path, tmp_path: Path) -> None:
    async def body(trainer: TolariaTrainer) -> tuple[list[float], list[float]]:
        await trainer.train_epoch()
        before = residual_deviations(trainer)
        await trainer.handle_end_of_epoch()
        return before, residual_deviations(trainer)

    config = text_config(write_texts(tmp_path / "texts"), model__width=64, morphogenetic__copy_init="fresh")
    before, after = use(config, run_dir, body)
    assert after[:2] == before
    assert after[2:] == pytest.approx([0.02 / 8**0.5] * 2, rel=0.03)


@pytest.mark.parametrize(("times", "depth"), [([0.3], 3), ([0.15, 0.5], 5)])
def test_a_part_of_a_stack_is_a_plain_network_of_a_size_in_between(
    run_dir: Path, tmp_path: Path, times: list[float], depth: int
) -> None:
    epochs = {"optimization__max_epochs": 6, "optimization__warmup_epochs": 0.0}
    use(stacking(**epochs, morphogenetic__schedule_at=times), run_dir, lambda trainer: trainer.train())
    part = {"morphogenetic__recipe_path": str(run_dir), "morphogenetic__recipe_fraction": 0.5}
    replay = stacking(morphogenetic__policy="replay", **part)
    straight, _ = train(replay, tmp_path / "straight")
    train(replay, tmp_path / "resumed", stop_at=7)
    assert_same(straight, train(replay, tmp_path / "resumed")[0])
    result = json.loads((tmp_path / "straight" / "status.json").read_text())["result"]
    plain = tiny_config(model__depths=[depth, depth], morphogenetic__enable_tamiyo=False)
    use(plain, tmp_path / "plain", lambda trainer: trainer.train())
    host = json.loads((tmp_path / "plain" / "status.json").read_text())["result"]
    assert (result["num_parameters"], result["num_macs"]) == (host["num_parameters"], host["num_macs"])
    folder = export(tmp_path / "straight", tmp_path / "exported")
    assert json.loads((folder / "model.json").read_text())["depths"] == {"layer1": depth, "layer2": depth}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__depths": [2, 1]},
            r"policy=stack: no block of layer2 has an output shaped like its input.*two blocks a stage "
            r"\(model.depths=\[2,2\]\), or use morphogenetic=heuristic \(grows new modules\) or morphogenetic=off$",
        ),
        (
            {"model__name": "resnet10"},
            r"no block of layer2 has an output shaped like its input.*two blocks a stage \(model=resnet18\), or use "
            r"morphogenetic=depth \(grows it into a resnet18\), morphogenetic=heuristic",
        ),
        (
            {"model__depths": [1, 1], "model__target_layers": ["layer2"], "morphogenetic__policy": "random"},
            "policy=random: no block of layer2 has an output shaped like its input",
        ),
        ({"model__target_layers": ["layer1", "layer2.1"]}, r"layer2\.0 is not named; name the stage, layer2"),
        ({"model__target_layers": ["layer*.0"]}, r"layer1\.1 is not named; name the stage, layer1"),
        ({"model__seeds_per_layer": 1}, r"model.seeds_per_layer=1: .* no site is left for layer1\.1; set it to 64"),
        (
            {"model__site_kinds": ["beside", "after"], "model__depths": [3, 3]},
            r"model.seeds_per_layer=4: .* no site is left for layer1\.2",
        ),
        (
            {"model__target_layers": ["layer2"], "morphogenetic__policy": "heuristic"},
            "policy=heuristic: chooses among stages, but one alone can be copied",
        ),
        ({"model__depths": [2, 1], "morphogenetic__policy": "heuristic"}, "but one alone can be copied"),
    ],
)
def test_stages_that_cannot_be_copied_are_refused(run_dir: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        use(stacking(**changes), run_dir, lambda trainer: trainer.train())


def test_a_stage_alone_can_be_stacked(run_dir: Path) -> None:
    use(stacking(model__target_layers=["layer2"]), run_dir, lambda trainer: trainer.train())
    assert depths(run_dir) == {"layer1": 2, "layer2": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blueprint_categories": ["residual"]}, "policy=stack grows copies"),
        ({"policy": "schedule", "blueprint_categories": ["copy", "residual"]}, "copy stands alone"),
        ({"policy": "heuristic", "blueprint_categories": ["residual", "copy"]}, "copy stands alone"),
        ({"policy": "learned"}, "was fitted to new modules, not to copies; add morphogenetic=heuristic"),
        ({"blueprint": "basic_block"}, "morphogenetic.blueprint: basic_block is a new module"),
        ({"policy": "heuristic", "library": ["mine"]}, "morphogenetic.library: mine is a new module"),
        ({"policy": "random", "copy_order": "interleave"}, "which would deepen a block, not a stage"),
        ({"incubation": "fit"}, "copies are trained already"),
        ({"copy_init": "shared", "judged": True}, "set judged=false and blending_steps=0"),
        ({"copy_init": "shared", "blending_steps": 3}, "blending_steps=3: copy_init=shared weakens"),
        ({"schedule_at": []}, "needs at least one time"),
        ({"policy": "heuristic", "schedule_at": [0.3, 0.7]}, r"all at most morphogenetic.growth_until=0\.6"),
    ],
)
def test_settings_that_contradict_copying_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(stacking(**{f"morphogenetic__{name}": value for name, value in changes.items()}))


def test_copies_grow_after_blocks_only() -> None:
    with pytest.raises(ConfigError, match=r"^model.site_kinds=\['beside'\]: copies stand after blocks; add after, or "):
        check(stacking(model__site_kinds=["beside"]))
