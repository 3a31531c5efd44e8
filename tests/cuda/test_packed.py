"""Runs that share a GPU in one process, on a real one: each computes what it computes alone."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.sweep.manifest import Member
from esper.sweep.pack import PackJob
from tests.conftest import STACK, journal_of
from tests.sweep.packing import DROPPED, alone, member, weights
from tests.tolaria.checkpoints.test_resume import assert_same

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]

ON_CUDA: dict[str, Any] = {
    "device": "cuda",
    "optimization__max_epochs": 12,
    "dataset__num_examples": 1280,
    "logging__log_interval": 10,
}
STATIC = {**ON_CUDA, "morphogenetic__enable_tamiyo": False}


@pytest.fixture(autouse=True)
def _process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(Path.cwd())
    interval = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval)


def outcomes(members: list[Member]) -> list[str]:
    """How the members ended; what those that failed printed goes to stdout."""
    found = [one.outcome().get("status", "none") for one in members]
    for one, status in zip(members, found, strict=True):
        if status != "finished":
            log = one.folder / "pack.log"
            sys.stdout.write(f"--- {one.name}: {one.outcome()}\n{log.read_text() if log.exists() else ''}\n")
    return found


def first_difference(one: Member, other: Member) -> int | None:
    """Step of the first line of metrics that differs."""
    lines = [journal_of(run.run_dir) for run in (one, other)]
    metrics = [[(event["step"], event["loss"]) for event in events if event["kind"] == "step"] for events in lines]
    return next((mine[0] for mine, theirs in zip(*metrics, strict=False) if mine != theirs), None)


def test_three_runs_are_bit_identical_to_each_alone_while_one_grows_and_another_fails(tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {
        "dropout": {**STATIC, **DROPPED},
        "dropout-1": {**STATIC, **DROPPED, "rng_seed": 1},
        "grows": ON_CUDA,
        "stacks": {**ON_CUDA, **STACK, "model__depths": [2, 2], "model__site_kinds": ["after"]},
        "fails": {**STATIC, "optimization__learning_rate": 1e20},
    }
    beside = [member(tmp_path / "beside", name, **changes) for name, changes in runs.items()]
    PackJob([one.folder for one in beside], at_once=4)()
    assert outcomes(beside) == ["finished"] * 4 + ["failed"]
    assert "not finite" in beside[4].outcome()["reason"]
    grown = journal_of(beside[2].run_dir)
    assert any(event["kind"] == "surgery" and event["committed"] for event in grown)
    different = []
    for one in beside[:4]:
        references = [member(tmp_path / folder, one.name, **runs[one.name]) for folder in ("alone", "again")]
        for reference in references:
            alone(reference)
        assert outcomes(references) == ["finished"] * 2
        found = [weights(each) for each in (one, *references)]
        names = [name for name in found[0] if not torch.equal(found[0][name], found[1][name])]
        again = [name for name in found[1] if not torch.equal(found[1][name], found[2][name])]
        if names or again or found[0].keys() != found[1].keys():
            different.append(one.name)
            step = first_difference(one, references[0])
            report = f"first line of the journal at step {step}; tensors {names}; alone, twice: {again}"
            sys.stdout.write(f"{one.name}: differs from itself alone: {report}\n")
    assert different == []


def test_a_run_that_needs_more_memory_than_there_is_leaves_the_others_and_runs_again_alone(tmp_path: Path) -> None:
    large = {**STATIC, "model__widths": [256, 256], "dataset__image_size": 32, "dataset__batch_size": 512}
    runs = [{**STATIC, "rng_seed": 0}, {**large, "rng_seed": 1}]
    members = [member(tmp_path / "beside", f"run-{i}", **changes) for i, changes in enumerate(runs)]
    gc.collect()
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + 1e9  # compiled networks of earlier tests stay
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        PackJob([one.folder for one in members], at_once=2)()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert outcomes(members)[0] == "finished"
    log = (members[1].folder / "pack.log").read_text()
    assert "it runs again, alone" in log, log
    reference = member(tmp_path / "alone", "run-0", **runs[0])
    alone(reference)
    assert_same(weights(members[0]), weights(reference))


def test_auto_measures_the_first_run_and_then_starts_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    members = [member(tmp_path / "beside", f"seed-{seed}", rng_seed=seed, **STATIC) for seed in range(3)]
    PackJob([one.folder for one in members], at_once=None)()
    assert outcomes(members) == ["finished"] * 3
    out = capfd.readouterr().out
    assert "a run uses " in out, out
