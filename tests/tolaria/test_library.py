from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from esper.configs import DatabaseConfig, TolariaConfig
from esper.errors import ConfigError, RunError
from esper.inference.export import export
from esper.launch.dry_run import dry_run
from esper.simic.fit import training_examples
from esper.tolaria import TolariaTrainer
from esper.tolaria.checkpoints import files as checkpoint
from esper.tolaria.library import declare_recorded
from esper.tracking import read
from esper.urza import catalogue
from esper.urza.records import KernelRecord
from esper.urza.store import Store
from tests.conftest import tiny_config, use
from tests.urza.definitions import text

ALWAYS: dict[str, Any] = {"morphogenetic__judged": False}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library with one blueprint; its file."""
    file = tmp_path / "library.db"
    with contextlib.closing(Store(_at(file), outputs_dir=tmp_path, create=True)) as store:
        store.add(text())
    return file


def _at(file: Path) -> DatabaseConfig:
    return DatabaseConfig(url=f"sqlite:///{file}")


def grows(library: Path, **changes: Any) -> TolariaConfig:
    return tiny_config(morphogenetic__blueprint="wide_depthwise", database=_at(library), **changes)


async def _train(trainer: TolariaTrainer) -> Any:
    await trainer.train()
    return trainer.run.model.recipe


def _forget() -> None:
    """As in a new process."""
    catalogue._declared.clear()


def test_what_a_run_names_grows_and_its_recipe_and_checkpoints_hold_the_definition(library: Path, run_dir: Path):
    (graft,) = use(grows(library, **ALWAYS), run_dir, _train)
    assert graft.blueprint_id.startswith("wide_depthwise@")
    (recorded,) = json.loads((run_dir / "recipe.json").read_text())["grafts"]
    assert recorded["definition"] == json.dumps(json.loads(text()), sort_keys=True, separators=(",", ":"))
    newest = checkpoint.find_checkpoints(run_dir / "checkpoints")[0]
    assert checkpoint.load(newest).recipe == [graft]


def test_a_run_goes_on_and_is_replayed_and_exported_after_the_library_is_gone(
    library: Path, run_dir: Path, tmp_path: Path
):
    config = grows(library, **ALWAYS)

    async def two_epochs(trainer: TolariaTrainer) -> None:
        for _ in range(2):
            await trainer.train_epoch()
            await trainer.handle_end_of_epoch()

    use(config, run_dir, two_epochs)
    library.unlink()
    _forget()
    grown = use(config, run_dir, _train)
    assert len(grown) == 1
    _forget()
    replay = tiny_config(morphogenetic__policy="replay", morphogenetic__recipe_path=str(run_dir))
    (again,) = use(replay, tmp_path / "replayed", _train)
    assert again.blueprint_id == grown[0].blueprint_id
    _forget()
    description = json.loads((export(run_dir, tmp_path / "out") / "model.json").read_text())
    assert description["recipe"][0]["definition"] == grown[0].definition


def test_a_run_keeps_what_it_began_with_whatever_the_library_says_later(library: Path, run_dir: Path, tmp_path: Path):
    config = grows(library)

    async def nothing(trainer: TolariaTrainer) -> str | None:
        return trainer.run.config.morphogenetic.blueprint

    before = use(config, run_dir, nothing)
    other = tmp_path / "other.db"
    with contextlib.closing(Store(_at(other), outputs_dir=tmp_path, create=True)) as store:
        store.add(text(kinds=["after"]))
    assert use(dataclasses.replace(config, database=_at(other)), run_dir, nothing) == before
    (run_dir / "blueprints.json").write_text("[1]")
    with pytest.raises(RunError, match=r"blueprints.json cannot be used: .*start over with fresh=true"):
        use(config, run_dir, nothing)


def test_a_blueprint_of_the_library_may_grow_among_those_built_in(library: Path, run_dir: Path):
    config = tiny_config(database=_at(library), morphogenetic__library=["wide_depthwise"])

    async def allowed(trainer: TolariaTrainer) -> list[str]:
        return trainer.run.config.morphogenetic.library

    (blueprint_id,) = use(config, run_dir, allowed)
    assert blueprint_id.startswith("wide_depthwise@")


def test_names_that_are_nowhere_are_refused_in_one_line_and_leave_nothing_behind(library: Path, run_dir: Path):
    for changes, says in (
        (
            {"morphogenetic__blueprint": "typo"},
            "'typo' is not built in .there are basic_block.*library: no blueprint 'typo'.*wide_depthwise",
        ),
        ({"morphogenetic__library": ["conv1x1"]}, "'conv1x1' is built in and needs no library; leave it out"),
    ):
        with pytest.raises(ConfigError, match=says):
            use(tiny_config(database=_at(library), **changes), run_dir, _train)
    assert {entry.name for entry in run_dir.iterdir()} <= {".lock"}


def test_a_quarantined_blueprint_is_refused_with_the_reason(library: Path, run_dir: Path, tmp_path: Path):
    with contextlib.closing(Store(_at(library), outputs_dir=tmp_path)) as store:
        kernel = KernelRecord(
            blueprint_id=store.get("wide_depthwise").blueprint_id,
            in_shape=(8, 4, 4),
            out_shape=(8, 4, 4),
            batch_size=8,
            device="cpu",
            torch_version="2.10",
            status="hung",
            reason="no answer in 1 s",
        )
        store.put_kernel(kernel)
    with pytest.raises(ConfigError, match=r"quarantined: hung .*no answer in 1 s; .*esper urza characterise"):
        use(grows(library), run_dir, _train)


def test_what_modules_gained_is_recorded_when_a_run_finishes(library: Path, run_dir: Path, tmp_path: Path):
    use(grows(library, database__record_outcomes=True), run_dir, _train)
    (judged,) = (event for event in read(run_dir / "journal.jsonl") if event["kind"] == "judgement")
    with contextlib.closing(Store(_at(library), outputs_dir=tmp_path)) as store:
        (outcome,) = store.outcomes()
    for name in ("blueprint_id", "gain", "lower_bound", "confidence", "kept", "added_macs", "cost_s"):
        assert getattr(outcome, name) == judged[name]
    assert (outcome.run_name, outcome.in_shape) == ("run", (4, 8, 8))
    _forget()
    assert len(training_examples(run_dir / "journal.jsonl")) == 1  # simic learns from it without the library


def test_a_library_that_fails_at_the_end_costs_a_warning_and_not_the_run(run_dir: Path, tmp_path: Path):
    (tmp_path / "library.db").write_text("no database" * 100)
    config = tiny_config(database=dataclasses.replace(_at(tmp_path / "library.db"), record_outcomes=True))
    use(config, run_dir, _train)
    *_, warning, end = read(run_dir / "journal.jsonl")
    assert warning["message"].startswith("outcomes were not recorded: ")
    assert end["status"] == "finished"


def test_a_dry_run_takes_from_the_library_of_the_run_s_outputs(run_dir: Path, tmp_path: Path):
    with contextlib.closing(Store(DatabaseConfig(), outputs_dir=tmp_path, create=True)) as store:
        store.add(text())
    found = dry_run(tiny_config(morphogenetic__blueprint="wide_depthwise"), run_dir)
    assert any("wide_depthwise@" in line for line in found.lines)


@pytest.mark.parametrize("content", ["[" * 100_000, '[{"layers": ' + "[" * 900 + "]" * 900 + "}]", "{}", "[1]", "[{}]"])
def test_damaged_definitions_of_a_run_are_one_line(run_dir: Path, content: str) -> None:
    run_dir.mkdir(parents=True)
    (run_dir / "blueprints.json").write_text(content)
    with pytest.raises(RunError, match=r"blueprints\.json.*start over with fresh=true") as error:
        declare_recorded(run_dir)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
