"""Starting from an earlier network as a user does: the command, its errors, and what they leave behind."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from esper import fit
from esper.cli import main
from esper.configs import TolariaConfig, load_config
from esper.configs.identity import differences, digest
from esper.configs.load import to_yaml
from esper.errors import ConfigError
from esper.launch.initial import resolve_policy
from esper.launch.run import Outcome
from tests.conftest import tiny_config
from tests.forked import ESPER_TRAIN, run
from tests.launch.test_arms import result_of

DIGITS = (
    "model=resnet_small",
    "model.widths=[4,8]",
    "model.depths=[2,2]",
    "model.target_layers=[layer1,layer2]",
    "dataset=digits",
    "dataset.batch_size=128",
    "optimization.max_epochs=3",
    "optimization.warmup_epochs=0.5",
    "tracking=none",
    "device=cpu",
)
OFF = (*DIGITS, "morphogenetic=off")


def train(*more: str) -> Outcome:
    return fit(*DIGITS, *more)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the run outputs/small/RUN, whose stages doubled."""
    folder = tmp_path_factory.mktemp("initial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train("experiment_name=small", "morphogenetic=stack", "checkpoint.save_trunk=true")
    return folder


@pytest.fixture
def source(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of that run, by its path relative to the current directory."""
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (run_dir,) = Path("outputs/small").iterdir()
    return str(run_dir)


def events(run_dir: Path, kind: str) -> list[dict[str, object]]:
    lines = map(json.loads, (run_dir / "journal.jsonl").read_text().splitlines())
    return [event for event in lines if event["kind"] == kind]


def test_the_command_continues_a_run_a_checkpoint_or_an_export_and_stacks_again(source: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["export", source, "--out", "exported"])
    size = result_of(Path(source))["num_parameters"]
    for given, depths in ((source, "[2,2]"), (f"{source}/checkpoints/trunk", "[2,2]"), ("exported", "[4,4]")):
        run_dir = fit(*OFF, f"model.depths={depths}", f"model.init_from={given}").run_dir
        assert result_of(run_dir)["num_parameters"] == size
        assert "init_from" not in run_dir.name
        assert f"/{given} (" in str(events(run_dir, "notice")[0]["message"])
    done = run(ESPER_TRAIN, *DIGITS, "morphogenetic=stack", f"model.init_from={source}", "rng_seed=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "images that are held out here (dataset.split_seed 0 → " in " ".join(done.stdout.split())
    (stacked,) = tmp_path.glob("outputs/morphogenetic_training/*stack*")
    assert result_of(stacked)["num_kept"] == 4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["model.widths=[4,6]"], "network: model.widths is [4,8], here [4,6]; give model.widths=[4,8]\n"),
        (["model.depths=[3,2]"], "network: model.depths is [2,2], here [3,2]; give model.depths=[2,2]\n"),
        (
            ["model.depths=[1,1]", "model.widths=[4,6]"],
            "model.depths is [2,2], here [1,1]; give model.widths=[4,8] model.depths=[2,2]\n",
        ),
        (["model.init_from=nowhere"], "/nowhere: not a run's folder, a checkpoint, or what"),
        (["model.init_from="], "which network?"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2_and_leaves_no_run_folder(
    source: str, tmp_path: Path, arguments: list[str], line: str
) -> None:
    done = run(ESPER_TRAIN, *OFF, f"model.init_from={source}", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in Path("outputs").iterdir()] == ["small"]


def test_an_export_of_unknown_settings_is_refused_with_the_tensors_that_differ(source: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["export", source, "--out", "exported"])
    with pytest.raises(
        ConfigError, match=r"holds another network: layer\d.* is missing, here \[.*; use the model settings"
    ):
        fit(*OFF, "model.depths=[6,6]", "model.init_from=exported")


def test_another_number_of_classes_gets_a_new_classifier(source: str) -> None:
    started = fit(*OFF, f"model.init_from={source}", "model.num_classes=12")
    notices = [str(event["message"]) for event in events(started.run_dir, "notice")]
    assert any("fc.weight, fc.bias start from initial weights" in notice for notice in notices)


def test_the_same_command_shows_the_result_when_the_network_is_gone_and_refuses_a_changed_one(source: str) -> None:
    first = fit(*OFF, f"model.init_from={source}")
    assert load_config(first.run_dir / "config.yaml").model.init_digest
    moved = Path(source).rename("elsewhere")
    assert fit(*OFF, f"model.init_from={source}") == first
    moved.rename(source)
    shutil.rmtree(sorted(Path(source, "checkpoints").glob("step-*"))[-1])
    with pytest.raises(ConfigError, match=r"another network than when this run began .*fresh=true"):
        fit(*OFF, f"model.init_from={source}")
    again = fit(*OFF, f"model.init_from={source}", "fresh=true")
    assert again.run_dir == first.run_dir
    assert again.result != first.result


def test_a_network_that_is_gone_before_the_first_checkpoint_is_named(source: str) -> None:
    run_dir = fit(*OFF, f"model.init_from={source}").run_dir
    (run_dir / "status.json").unlink()
    shutil.rmtree(run_dir / "checkpoints")
    shutil.rmtree(source)
    with pytest.raises(ConfigError, match=r"init_from=/.*/outputs/small/.*: not a run's folder"):
        fit(*OFF, f"model.init_from={source}")


def test_a_dry_run_starts_from_the_network_too(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    train("morphogenetic=stack", f"model.init_from={source}", "dry_run=true")
    assert f"{result_of(Path(source))['num_parameters']:,} parameters" in capsys.readouterr().out


def test_runs_that_start_from_nothing_keep_their_names() -> None:
    config = tiny_config()
    assert digest(config) == digest(tiny_config(model__init_from=None, checkpoint__save_trunk=True))
    assert digest(config) != digest(tiny_config(model__init_from="outputs/small/run"))


def test_more_capacity_gives_every_arm_the_same_new_compute(source: str) -> None:
    given = f"model.init_from={source}/checkpoints/trunk"
    arms = {
        arm: train("experiment=more_capacity", f"arm={arm}", given, "optimization.max_epochs=4")
        for arm in ("grown", "static_flops", "final_flops")
    }
    started = {arm: load_config(outcome.run_dir / "config.yaml").model.init_from for arm, outcome in arms.items()}
    trunk = f"{Path.cwd()}/./{given.partition('=')[2]}"
    assert started == {"grown": trunk, "static_flops": trunk, "final_flops": None}
    sizes = {arm: result_of(outcome.run_dir)["num_parameters"] for arm, outcome in arms.items()}
    assert sizes["static_flops"] == result_of(Path(source))["num_parameters"] < sizes["grown"] == sizes["final_flops"]
    spent = [result_of(outcome.run_dir)["total_macs"] for outcome in arms.values()]
    assert max(spent) <= 1.02 * min(spent)
    again = train("experiment=more_capacity", "arm=static_flops", given, "optimization.max_epochs=4")
    assert again == arms["static_flops"]
    with pytest.raises(SystemExit, match="0"):
        main(["report", "outputs/more_capacity"])
    page = Path("outputs/more_capacity/comparison.html").read_text()
    assert "not compared: model.init" not in page


def test_more_capacity_asks_for_the_network(source: str) -> None:
    with pytest.raises(ConfigError, match="which network"):
        train("experiment=more_capacity", "arm=grown")


def test_a_recipe_that_has_changed_is_another_run(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (source,) = workspace.glob("outputs/small/*")
    shutil.copy(source / "recipe.json", tmp_path)
    replay = ("morphogenetic.policy=replay", "morphogenetic.recipe_path=recipe.json", "optimization.max_epochs=1")
    first = train(*replay)
    assert train(*replay) == first
    recipe = json.loads(Path("recipe.json").read_text())
    Path("recipe.json").write_text(json.dumps(recipe | {"grafts": recipe["grafts"][:1]}))
    with pytest.raises(ConfigError, match=r"recipe.json: has changed since this run began .* fresh=true"):
        train(*replay)
    assert result_of(train(*replay, "fresh=true").run_dir)["num_parameters"] < result_of(source)["num_parameters"]


def test_a_policy_that_has_changed_is_another_run_and_older_runs_recorded_none(tmp_path: Path) -> None:
    def resolve(**more: object) -> TolariaConfig:
        growth = {"morphogenetic__policy": "learned", "morphogenetic__tamiyo_policy_path": str(tmp_path / "policy")}
        return resolve_policy(tiny_config(**growth, **more), run_dir=tmp_path)

    (tmp_path / "policy").write_bytes(b"one")
    unresolved = tiny_config()
    began = resolve()
    (tmp_path / "config.yaml").write_text(to_yaml(began))
    assert resolve() == began
    assert differences(dataclasses.asdict(unresolved), began).keys().isdisjoint({"morphogenetic.policy_digest"})
    (tmp_path / "policy").write_bytes(b"two")
    with pytest.raises(ConfigError, match=r"tamiyo_policy_path=.*: has changed since this run began"):
        resolve()
    assert resolve(fresh=True).morphogenetic.policy_digest != began.morphogenetic.policy_digest
    assert resolve(bus="redis", morphogenetic__tamiyo="shared").morphogenetic.policy_digest is None
