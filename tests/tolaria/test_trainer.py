from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from esper.contracts.decisions import Action, AdaptationDecision
from esper.errors import DivergenceError
from esper.tolaria import TolariaTrainer
from esper.tolaria.checkpoints.files import find_checkpoints
from esper.tolaria.evaluate import evaluate
from esper.tolaria.metrics import require_finite
from esper.tolaria.sums import Window
from tests.conftest import journal_of, tiny_config, use


def test_twenty_steps_give_the_golden_losses(run_dir: Path) -> None:
    config = tiny_config(morphogenetic__enable_tamiyo=False, logging__log_interval=1, optimization__max_epochs=4)
    use(config, run_dir, lambda trainer: trainer.train())
    losses = [line["loss"] for line in journal_of(run_dir, "step")[:20]]
    golden = json.loads((Path(__file__).parent / "golden_losses.json").read_text())
    assert losses == pytest.approx(golden, rel=1e-4)


def test_validating_changes_no_training_state(run_dir: Path, tmp_path: Path) -> None:
    plain = tiny_config(logging__eval_interval=None)
    often = tiny_config(logging__eval_interval=1)

    async def weights(trainer: TolariaTrainer) -> dict[str, torch.Tensor]:
        await trainer.train()
        return {name: value.clone() for name, value in trainer.run.model.state_dict().items()}

    a = use(plain, run_dir, weights)
    b = use(often, tmp_path / "often", weights)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert len(journal_of(tmp_path / "often", "validation")) == 18


def test_the_run_folder_tells_the_whole_story(run_dir: Path) -> None:
    use(tiny_config(), run_dir, lambda trainer: trainer.train())
    status = json.loads((run_dir / "status.json").read_text())
    assert status["status"] == "finished"
    assert 0.0 <= status["result"]["test_accuracy"] <= 1.0
    kinds = [event["kind"] for event in journal_of(run_dir)]
    assert kinds[0] == "run_started"
    assert kinds[-1] == "run_ended"
    assert kinds.index("decision") < kinds.index("judgement")
    assert (run_dir / "config.yaml").exists()


def test_a_germination_is_journalled_as_intent_then_commit(run_dir: Path) -> None:
    use(tiny_config(), run_dir, lambda trainer: trainer.train())
    lines = journal_of(run_dir)
    kinds = [(line["kind"], line.get("new")) for line in lines]
    first = kinds.index(("surgery_intended", None))
    assert kinds[first + 1 : first + 6] == [
        ("surgery", None), ("state", "germinated"), ("state", "training"), ("state", "blending"), ("state", "holding"),
    ]  # fmt: skip
    assert lines[first + 1]["committed"] is True
    assert lines[first + 1]["num_parameters_after"] > lines[first + 1]["num_parameters_before"]


def test_a_decision_that_cannot_be_carried_out_is_refused_and_journalled(run_dir: Path) -> None:
    async def body(trainer: TolariaTrainer) -> list[bool]:
        wishes = [
            AdaptationDecision(should_adapt=True, target_layer="layer7"),
            AdaptationDecision(should_adapt=True, target_layer="layer1", blueprint_id="test_blueprint_123"),
            AdaptationDecision(should_adapt=True, site="layer1.0:after", action=Action.CULL),
            AdaptationDecision(should_adapt=False),
        ]
        return [await trainer.handle_adaptation_signal(wish) for wish in wishes]

    assert use(tiny_config(), run_dir, body) == [False] * 4
    outcomes = [line["outcome"] for line in journal_of(run_dir, "decision")]
    assert "no layer 'layer7'; this network may grow in: layer1, layer2" in outcomes[0]
    assert "test_blueprint_123" in outcomes[1]
    assert "no live kernel" in outcomes[2]
    assert journal_of(run_dir, "surgery_intended") == []


def test_a_culled_branch_leaves_weights_and_optimizer_state_bit_identical(run_dir: Path) -> None:
    async def body(trainer: TolariaTrainer) -> None:
        await trainer.train_epoch()
        run = trainer.run
        before = {f"{id(p)}|{key}": value.clone() for p, s in run.optimizer.state.items() for key, value in s.items()}
        weights = {name: p.clone() for name, p in run.model.named_parameters()}
        assert await trainer.handle_adaptation_signal(AdaptationDecision(should_adapt=True, target_layer="layer2"))
        site = run.model.recipe[0].site
        assert await trainer.handle_adaptation_signal(
            AdaptationDecision(should_adapt=True, site=site, action=Action.CULL)
        )
        after = {f"{id(p)}|{key}": value for p, s in run.optimizer.state.items() for key, value in s.items()}
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        named = dict(run.model.named_parameters())
        assert weights.keys() == named.keys()
        assert all(torch.equal(weights[name], named[name]) for name in weights)

    use(tiny_config(), run_dir, body)


def test_growth_is_charged_for_scoring_and_judging(run_dir: Path) -> None:
    use(tiny_config(), run_dir, lambda trainer: trainer.train())
    result = json.loads((run_dir / "status.json").read_text())["result"]
    charged = sum(line["cost_macs"] for line in journal_of(run_dir, "signals") + journal_of(run_dir, "judgement"))
    assert result["growth_macs"] >= charged > 0


def test_an_ordinary_run_has_no_slots_and_no_decisions(run_dir: Path) -> None:
    use(tiny_config(morphogenetic__enable_tamiyo=False), run_dir, lambda trainer: trainer.train())
    assert journal_of(run_dir, "run_started")[0]["num_sites"] == 0
    assert journal_of(run_dir, "signals") == journal_of(run_dir, "decision") == []


def test_patience_ends_a_run_that_no_longer_improves(run_dir: Path) -> None:
    config = tiny_config(
        optimization__patience=2, optimization__min_delta=100.0, optimization__max_epochs=8,
        morphogenetic__enable_tamiyo=False,
    )  # fmt: skip
    history = use(config, run_dir, lambda trainer: trainer.train())
    assert len(history) == 3  # the first epoch improves on nothing at all
    assert json.loads((run_dir / "status.json").read_text())["status"] == "finished"


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_last_good_checkpoint(run_dir: Path) -> None:
    use(tiny_config(optimization__max_epochs=1), run_dir, lambda trainer: trainer.train())
    saved = find_checkpoints(run_dir / "checkpoints")
    hot = tiny_config(
        optimization__learning_rate=1e30, optimization__max_epochs=3, checkpoint__resume_from=str(saved[0]),
        checkpoint__checkpoint_dir=str(run_dir / "checkpoints"), checkpoint__auto_resume=False,
    )  # fmt: skip
    with pytest.raises(DivergenceError, match=r"step \d+ are not finite; .*last good checkpoint is .*step-00000006"):
        use(hot, run_dir.with_name("hot"), lambda trainer: trainer.train())
    assert find_checkpoints(run_dir / "checkpoints") == saved


def test_gradient_clipping_spans_all_parameters(run_dir: Path) -> None:
    async def body(trainer: TolariaTrainer) -> float:
        run, seen = trainer.run, []
        run.optimizer.register_step_pre_hook(
            lambda optimizer, *_: seen.append(
                torch.nn.utils.get_total_norm([p.grad for g in optimizer.param_groups for p in g["params"]])
            )
        )
        await trainer.handle_adaptation_signal(AdaptationDecision(should_adapt=True, target_layer="layer1"))
        await trainer.train_epoch()
        return max(map(float, seen))

    assert use(tiny_config(optimization__gradient_clip_norm=0.01), run_dir, body) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains(run_dir: Path, dtype: str) -> None:
    config = tiny_config(mixed_precision=True, autocast_dtype=dtype, optimization__max_epochs=1)

    async def body(trainer: TolariaTrainer) -> Window:
        await trainer.train_epoch()
        assert trainer.run.step.autocast_dtype is getattr(torch, dtype)
        return require_finite(trainer.run)

    assert use(config, run_dir, body).first_bad_step is None


def test_validation_is_in_the_number_format_of_training_and_the_result_in_float32(run_dir: Path) -> None:
    async def body(trainer: TolariaTrainer) -> tuple[float, float, float]:
        await trainer.train()
        run = trainer.run
        plain, _ = evaluate(run.model, run.parts.evaluation_batches(run.parts.splits.controller), run.parts.task)
        assert trainer.result is not None
        return plain, trainer.result["val_loss"], (await trainer.validate_epoch())["loss"]

    plain, told, validated = use(tiny_config(mixed_precision=True, optimization__max_epochs=1), run_dir, body)
    assert plain == told
    assert plain != validated
    assert plain == pytest.approx(validated, rel=0.05)


def test_profiling_writes_a_trace(run_dir: Path) -> None:
    use(tiny_config(profile_training=True, optimization__max_epochs=1), run_dir, lambda trainer: trainer.train())
    assert "conv2d" in (run_dir / "profile.json").read_text()


def test_checkpoints_beyond_the_limit_are_removed_and_the_best_is_kept(run_dir: Path) -> None:
    use(tiny_config(checkpoint__max_checkpoints=1), run_dir, lambda trainer: trainer.train())
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert [name.split("-")[0] for name in names] == ["best", "step"]
    assert names[1] == "step-00000018"


def test_save_interval_and_save_last_are_obeyed(run_dir: Path) -> None:
    config = tiny_config(checkpoint__save_interval=2, checkpoint__save_last=False, checkpoint__save_best=False)
    use(config, run_dir, lambda trainer: trainer.train())
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000012"]
