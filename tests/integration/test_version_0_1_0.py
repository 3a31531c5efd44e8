"""A run that version 0.1.0 wrote, interrupted in mid-growth, resumes as that version would have resumed it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from esper import fit
from esper.configs.compose import compose
from esper.configs.identity import run_name
from esper.configs.load import from_hydra

RECORDED = Path(__file__).parent / "version_0_1_0"
EXPECTED = json.loads((RECORDED / "expected.json").read_text())


def test_the_same_overrides_name_the_same_run() -> None:
    overrides = EXPECTED["overrides"]
    assert run_name(from_hydra(compose(overrides)), overrides) == EXPECTED["name"]


def test_it_resumes_to_the_result_it_would_have_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "outputs" / "version_0_1_0" / EXPECTED["name"]
    shutil.copytree(RECORDED / "run", run_dir)
    monkeypatch.chdir(tmp_path)
    outcome = fit(*EXPECTED["overrides"])

    assert outcome.run_dir == run_dir
    assert outcome.result is not None
    untimed = {name: outcome.result[name] for name in EXPECTED["result"] if name != "seconds"}
    assert untimed == pytest.approx({name: EXPECTED["result"][name] for name in untimed}, rel=1e-4)
    weights = load_file(sorted((run_dir / "checkpoints").glob("step-*"))[-1] / "model.safetensors")
    sums = {name: weight.to(torch.float64).sum().item() for name, weight in weights.items()}
    assert sums == pytest.approx(EXPECTED["weight_sums"], rel=1e-3, abs=1e-4)
    (started,) = [
        event
        for line in (run_dir / "journal.jsonl").read_text().splitlines()
        if (event := json.loads(line))["kind"] == "run_started" and event["resumed_from"]
    ]
    assert started["resumed_from"].endswith("step-00000014")
