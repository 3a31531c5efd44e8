"""Starting from an earlier network: what a new run takes from it, what it does not, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esper.build import require_recomputable
from esper.configs import ModelConfig, TolariaConfig
from esper.configs.check import check
from esper.configs.load import to_yaml
from esper.contracts.recipe import Graft
from esper.errors import CheckpointError, ConfigError
from esper.inference.export import export
from esper.tolaria import TolariaTrainer
from esper.tolaria.checkpoints.files import find_checkpoints
from esper.tolaria.checkpoints.initial import read_network
from tests.conftest import journal_of, tiny_config, use
from tests.tolaria.checkpoints.test_resume import assert_same, train
from tests.tolaria.growth.test_stack import stacking

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


async def logits(trainer: TolariaTrainer) -> Tensor:
    with torch.no_grad():
        output: Tensor = trainer.run.model.eval()(IMAGES)
    return output


async def train_and_compute(trainer: TolariaTrainer) -> Tensor:
    await trainer.train()
    return await logits(trainer)


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A finished run whose two stages doubled, and the logits of its network."""
    torch.set_num_threads(1)
    run_dir = tmp_path_factory.mktemp("earlier") / "tiny" / "stacked"
    return run_dir, use(stacking(checkpoint__save_trunk=True), run_dir, train_and_compute)


def starting(source: Path, **changes: Any) -> TolariaConfig:
    return stacking(model__init_from=str(source), rng_seed=5, **changes)


def test_a_run_starts_with_the_weights_and_modules_of_the_earlier_one_and_nothing_else(
    stacked: tuple[Path, Tensor], run_dir: Path
) -> None:
    earlier, expected = stacked

    async def compare(trainer: TolariaTrainer) -> None:
        run, state = trainer.run, trainer.training_state
        assert torch.equal(await logits(trainer), expected)
        assert [graft.born_step for graft in run.model.recipe] == [0, 0]
        assert (state.global_step, state.epoch, state.ledger.train_macs) == (0, 0, 0)
        assert not any(bool(value.any()) for p in run.optimizer.state.values() for value in p.values())
        assert run.host_cost == run.life.cost
        assert {group["born_step"] for group in run.optimizer.param_groups} == {None, 0}

    use(starting(earlier), run_dir, compare)
    last = json.loads((earlier / "status.json").read_text())["result"]
    first = journal_of(run_dir)[0]
    assert first["num_parameters"] == last["num_parameters"]


def test_copies_grow_on_top_of_copies_and_a_replay_of_both_has_the_same_size(
    stacked: tuple[Path, Tensor], run_dir: Path, tmp_path: Path
) -> None:
    config = starting(stacked[0], optimization__max_epochs=4, morphogenetic__holding_epochs=1)

    async def recipe(trainer: TolariaTrainer) -> Any:
        await trainer.train()
        return trainer.run.model.recipe

    grafts = use(config, run_dir, recipe)
    assert [graft.graft_id for graft in grafts] == [1, 2, 3, 4]
    assert grafts[2].sources == ("layer1.0", "layer1.1", "layer1.1+1", "layer1.1+2")
    result = json.loads((run_dir / "status.json").read_text())["result"]
    assert (result["num_grown"], result["num_kept"]) == (2, 4)
    assert json.loads((export(run_dir, tmp_path / "out") / "model.json").read_text())["depths"] == {
        "layer1": 8,
        "layer2": 8,
    }
    replay = stacking(morphogenetic__policy="replay", morphogenetic__recipe_path=str(run_dir))
    use(dataclasses.replace(replay, rng_seed=6), tmp_path / "replay", train_and_compute)
    replayed = json.loads((tmp_path / "replay" / "status.json").read_text())["result"]
    assert replayed["num_parameters"] == result["num_parameters"]


def test_without_growth_the_grown_modules_are_there_and_nobody_is_consulted(
    stacked: tuple[Path, Tensor], run_dir: Path, tmp_path: Path
) -> None:
    config = starting(stacked[0], morphogenetic__enable_tamiyo=False, morphogenetic__policy="heuristic")
    use(config, run_dir, train_and_compute)
    events = journal_of(run_dir)
    assert not [event for event in events if event["kind"] in ("signals", "decision")]
    assert events[-1]["result"]["num_kept"] == 2
    assert events[-1]["result"]["num_parameters_before"] == events[-1]["result"]["num_parameters"]
    exported = json.loads((export(run_dir, tmp_path / "out") / "model.json").read_text())
    assert exported["depths"] == {"layer1": 4, "layer2": 4}


@pytest.mark.parametrize("prefix", ["best", "trunk"])
def test_a_checkpoint_is_named_by_its_folder_or_by_its_kind(
    stacked: tuple[Path, Tensor], monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    folder = stacked[0] / "checkpoints"
    newest = find_checkpoints(folder, prefix=prefix)[0]
    by_kind, by_folder = read_network(folder / prefix), read_network(newest)
    assert by_kind.path == by_folder.path == newest
    assert by_kind.digest == by_folder.digest
    assert (by_kind.digest == read_network(stacked[0]).digest) == (newest.name.endswith("-00000018"))
    monkeypatch.chdir(folder)
    assert read_network(Path(newest.name)).digest == read_network(Path(prefix)).digest == by_kind.digest


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_an_export_becomes_the_plain_host_of_its_size(
    stacked: tuple[Path, Tensor], run_dir: Path, tmp_path: Path, file: str
) -> None:
    out = export(stacked[0], tmp_path / "out")
    config = starting(out / file, model__depths=[4, 4], morphogenetic__enable_tamiyo=False)
    assert torch.allclose(use(config, run_dir, logits), stacked[1], rtol=1e-5, atol=1e-5)


def test_the_average_of_the_weights_is_taken_where_the_run_kept_one(run_dir: Path, tmp_path: Path) -> None:
    config = tiny_config(optimization__ema_decay=0.8, morphogenetic__policy="never")

    async def averaged(trainer: TolariaTrainer) -> Tensor:
        await trainer.train()
        assert trainer.run.step.ema is not None
        with trainer.run.step.ema.applied(step=trainer.training_state.global_step):
            return await logits(trainer)

    expected = use(config, run_dir, averaged)
    new = tiny_config(model__init_from=str(run_dir), morphogenetic__policy="never")
    assert torch.equal(use(new, tmp_path / "new", logits), expected)
    moved = shutil.copytree(run_dir / "checkpoints" / "step-00000018", tmp_path / "alone")
    with pytest.raises(ConfigError, match=r"kept an average of its weights.*give the run's folder"):
        read_network(moved)


def test_another_number_of_classes_gets_a_new_classifier_with_a_notice(
    stacked: tuple[Path, Tensor], run_dir: Path, tmp_path: Path
) -> None:
    async def tensors(trainer: TolariaTrainer) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in trainer.run.model.state_dict().items()}

    fresh = use(stacking(model__num_classes=13, rng_seed=5), tmp_path / "fresh", tensors)
    started = use(starting(stacked[0], model__num_classes=13), run_dir, tensors)
    earlier = read_network(stacked[0]).weights
    head = {"host.fc.weight", "host.fc.bias"}
    assert all(torch.equal(started[name], fresh[name]) for name in head)
    assert {name for name in earlier if not torch.equal(earlier[name], started[name])} == head
    assert "another number of classes: fc.weight, fc.bias start from initial weights" in (
        (run_dir / "journal.jsonl").read_text()
    )


@pytest.mark.parametrize("stop_at", [2, 6, 7, 12])
def test_a_run_resumes_bit_identically_and_without_the_earlier_network_after_its_first_checkpoint(
    stacked: tuple[Path, Tensor], run_dir: Path, tmp_path: Path, stop_at: int
) -> None:
    source = shutil.copytree(stacked[0], tmp_path / "source")
    config = starting(source, optimization__ema_decay=0.9)
    straight, counters = train(config, tmp_path / "straight")
    train(config, run_dir, stop_at=stop_at)
    shutil.rmtree(source)
    resumed, resumed_counters = train(config, run_dir)
    assert_same(straight, resumed)
    assert counters == resumed_counters


def test_modules_at_sites_that_are_not_open_stay_and_other_modules_grow(run_dir: Path, tmp_path: Path) -> None:
    use(tiny_config(morphogenetic__judged=False), run_dir, train_and_compute)
    (old,) = read_network(run_dir).recipe
    assert old.site == "layer1.0:beside"
    config = tiny_config(
        model__init_from=str(run_dir), model__site_kinds=["width"], morphogenetic__judged=False, rng_seed=1
    )

    async def sites(trainer: TolariaTrainer) -> list[str]:
        await trainer.train()
        assert [slot.site.name for slot in trainer.run.model.all_slots()] == [
            "layer1.0:beside",
            "layer1.0:width",
            "layer2.0:width",
        ]
        return [graft.site for graft in trainer.run.model.recipe]

    assert use(config, tmp_path / "new", sites) == ["layer1.0:beside", "layer1.0:width"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__widths": [4, 6]}, r"model\.widths is \[4,8\], here \[4,6\]; give model\.widths=\[4,8\]$"),
        ({"model__depths": [2, 3]}, r"model\.depths is \[2,2\], here \[2,3\]; give model\.depths=\[2,2\]$"),
        ({"model__depths": [2, 1], "morphogenetic__policy": "never"}, r"model\.depths is \[2,2\], here \[2,1\]; give"),
        ({"model__target_layers": ["layer1"]}, r"has a module at layer2\.1:after, a site that this network lacks"),
        ({"dataset__name": "digits", "dataset__image_size": None}, r"conv1\.weight is \[4, 3, 3, 3\], here \[4, 1, 3"),
    ],
)
def test_another_network_is_refused_with_the_settings_that_differ(
    stacked: tuple[Path, Tensor], run_dir: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        use(starting(stacked[0], **changes), run_dir, logits)
    assert "\n" not in str(error.value)
    assert not (run_dir / "config.yaml").exists()


def test_what_is_no_network_of_ours_is_refused(stacked: tuple[Path, Tensor], tmp_path: Path) -> None:
    pickled = tmp_path / "net.pt"
    torch.save({"weight": torch.zeros(3)}, pickled)
    out = export(stacked[0], tmp_path / "out")
    damaged = shutil.copytree(find_checkpoints(stacked[0] / "checkpoints")[0], tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"\0" * 100)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text(to_yaml(tiny_config()))
    for path, message in (
        (tmp_path / "nowhere", "not a run's folder, a checkpoint, or what esper export wrote"),
        (pickled, "not a run's folder, a checkpoint, or what esper export wrote"),
        (damaged, "is damaged: its SHA-256 differs .*; no other one there loads"),
        (empty, "has no checkpoint yet"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_network(path)
    (out / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ConfigError, match="not what esper export wrote, or damaged"):
        read_network(out)
    (out / "model.json").unlink()
    with pytest.raises(ConfigError, match=r"model\.json is missing"):
        read_network(out / "model.safetensors")


def test_a_module_without_a_verdict_and_one_that_is_not_folded_are_refused(run_dir: Path, tmp_path: Path) -> None:
    config = tiny_config(
        model__site_kinds=["after"],
        model__depths=[2, 2],
        morphogenetic__judged=False,
        morphogenetic__holding_epochs=9,
        morphogenetic__blueprint="squeeze_excite",
        checkpoint__max_checkpoints=9,
    )
    use(config, run_dir, train_and_compute)
    with pytest.raises(
        ConfigError, match=r"step-00000012 the module at layer1\.0:after was neither kept nor culled yet"
    ):
        read_network(run_dir / "checkpoints" / "step-00000012")
    with pytest.raises(ConfigError, match=r"module at layer1\.0:after could not be folded .*give the run's folder"):
        read_network(export(run_dir, tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"blocks with squeeze_excite at layer1\.0:after cannot be copied"):
        use(starting(run_dir), tmp_path / "new", logits)


def test_a_changed_network_is_refused_by_its_digest(stacked: tuple[Path, Tensor], run_dir: Path) -> None:
    with pytest.raises(ConfigError, match="holds another network than when the run was launched"):
        use(starting(stacked[0], model__init_digest="0" * 16), run_dir, logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__init_from": ""}, "which network"),
        ({"model__name": "resnet18", "model__pretrained": True}, r"init_from brings other weights"),
        ({"morphogenetic__policy": "replay"}, "trains from scratch, but model.init_from has weights"),
        ({"checkpoint__save_trunk": True, "optimization__scheduler": "cosine",
          "morphogenetic__growth_until": 0.5}, "save_trunk=true: needs .* use wsd"),
    ],
)  # fmt: skip
def test_settings_that_contradict_a_start_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(tiny_config(**({"model__init_from": "somewhere"} | changes)))


@pytest.mark.parametrize(("decay", "step"), [(0.3, 13), (0.5, 9)])
def test_the_trunk_is_the_last_step_before_the_learning_rate_decays(run_dir: Path, decay: float, step: int) -> None:
    config = tiny_config(
        optimization__decay_fraction=decay,
        optimization__warmup_epochs=0.0,
        checkpoint__save_trunk=True,
        morphogenetic__policy="never",
        logging__log_interval=1,
    )
    train(config, run_dir)
    rates = [event["learning_rate"] for event in journal_of(run_dir, "step")]
    (trunk,) = find_checkpoints(run_dir / "checkpoints", prefix="trunk")
    assert trunk.name == f"trunk-{step:08d}"
    assert rates[:step] == [0.05] * step
    assert rates[step + 1] < 0.05


def test_the_trunk_is_saved_after_a_stop_right_before_the_decay(run_dir: Path) -> None:
    config = tiny_config(optimization__decay_fraction=1 / 3, checkpoint__save_trunk=True, morphogenetic__policy="never")
    train(config, run_dir, stop_at=12)
    assert not find_checkpoints(run_dir / "checkpoints", prefix="trunk")
    train(config, run_dir)
    (trunk,) = find_checkpoints(run_dir / "checkpoints", prefix="trunk")
    assert trunk.name == "trunk-00000012"


def test_the_trunk_of_steps_that_are_done_again_is_set_aside_and_saved_again(run_dir: Path) -> None:
    config = tiny_config(checkpoint__save_trunk=True, morphogenetic__policy="never", checkpoint__max_checkpoints=9)
    train(config, run_dir)
    (trunk,) = find_checkpoints(run_dir / "checkpoints", prefix="trunk")
    before = read_network(trunk).digest
    again = dataclasses.replace(
        config,
        checkpoint=dataclasses.replace(config.checkpoint, resume_from=str(run_dir / "checkpoints/step-00000006")),
    )
    train(again, run_dir)
    assert read_network(trunk).digest == before
    assert (run_dir / "checkpoints" / "abandoned" / trunk.name).is_dir()


def test_epochs_of_the_final_network_count_the_modules_of_the_earlier_one(
    stacked: tuple[Path, Tensor], run_dir: Path
) -> None:
    config = starting(
        stacked[0],
        morphogenetic__schedule_by="compute",
        morphogenetic__schedule_at=[0.2],
        optimization__max_epochs=6,
        checkpoint__save_trunk=True,
        checkpoint__max_checkpoints=99,
    )
    straight, _ = train(config, run_dir / "straight")
    train(config, run_dir / "stopped", stop_at=20)
    resumed, _ = train(config, run_dir / "stopped")
    assert_same(straight, resumed)
    result = json.loads((run_dir / "straight" / "status.json").read_text())["result"]
    final_epochs = 6 * 6 * 32 * 3 * result["num_macs"]
    assert result["num_macs"] > 1.9 * result["num_macs_before"]
    assert result["total_macs"] == pytest.approx(final_epochs, rel=0.02)
    (trunk,) = find_checkpoints(run_dir / "straight" / "checkpoints", prefix="trunk")
    spent = json.loads((trunk / "state.json").read_text())["training"]["train_macs"]
    assert 0.7 * final_epochs <= spent < 0.7 * final_epochs + 32 * 3 * result["num_macs"]


def test_two_places_to_start_from_are_refused(stacked: tuple[Path, Tensor], run_dir: Path, tmp_path: Path) -> None:
    train(tiny_config(), tmp_path / "other" / "run", stop_at=7)
    (other,) = find_checkpoints(tmp_path / "other" / "run" / "checkpoints")[:1]
    with pytest.raises(CheckpointError, match="leave one of them out"):
        use(starting(stacked[0], checkpoint__resume_from=str(other)), run_dir, TolariaTrainer.train)


@pytest.mark.parametrize(("site", "is_refused"), [("layer1.0.conv1:parallel", True), ("layer1.0:beside", False)])
def test_recomputed_blocks_with_modules_inside_are_refused(site: str, is_refused: bool) -> None:
    graft = Graft(graft_id=1, site=site, blueprint_id="fold_3x3", init_seed=0, init_gain=1.0, born_step=3)
    refused = pytest.raises(ConfigError, match="of the recipe x would count every batch twice")
    with refused if is_refused else contextlib.nullcontext():
        require_recomputable([graft], ModelConfig(gradient_checkpointing=True), "the recipe x")
    require_recomputable([graft], ModelConfig(), "the recipe x")
