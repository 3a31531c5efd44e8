"""`fit` beside other things in one process: a Hydra application, threads, a program with its own random numbers."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime
from hydra.version import getbase

from esper import fit
from esper.configs.compose import compose
from esper.launch.run import Outcome
from esper.tolaria.loop import TrainingLoop

SHORT = ["experiment=debug", "debug_mode=false", "morphogenetic=off", "optimization.max_epochs=1"]


def weights(outcome: Outcome) -> bytes:
    (checkpoint,) = (outcome.run_dir / "checkpoints").glob("step-*")
    return (checkpoint / "model.safetensors").read_bytes()


def hold_the_first(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Of two runs at once, the first goes on when the other one has said that it waits; the event: it is held."""
    initialize, has_told, is_held = TrainingLoop.initialize, threading.Event(), threading.Event()

    class Told(io.StringIO):
        def write(self, text: str) -> int:
            if "another run trains in this process" in text:
                has_told.set()
            return super().write(text)

    def held(loop: TrainingLoop) -> None:
        is_held.set()
        assert has_told.wait(60)
        initialize(loop)

    monkeypatch.setattr(TrainingLoop, "initialize", held)
    monkeypatch.setattr(sys, "stderr", Told())
    return is_held


def test_composing_leaves_the_hydra_of_an_application_as_it_was(tmp_path: Path):
    (tmp_path / "app.yaml").write_text("lr: 0.1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.2", job_name="app"):
        own = GlobalHydra.instance()
        assert compose(["experiment=debug"]).experiment_name == "debug"
        assert GlobalHydra.instance() is own
        assert (JobRuntime.instance().get("name"), str(getbase())) == ("app", "1.2")
        assert hydra_compose("app", ["lr=0.2"]).lr == 0.2
    assert compose(["experiment=debug"]).experiment_name == "debug"


def test_threads_compose_at_once():
    overrides = [["experiment=debug", f"rng_seed={seed}"] for seed in range(6)]
    with ThreadPoolExecutor(max_workers=6) as threads:
        assert [cfg.rng_seed for cfg in threads.map(compose, overrides)] == list(range(6))


@pytest.mark.long
def test_runs_in_threads_are_those_that_they_are_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def run(name: str, seed: int) -> bytes:
        return weights(fit(*SHORT, f"experiment_name={name}", f"rng_seed={seed}"))

    alone = [run("alone", seed) for seed in (1, 2)]
    hold_the_first(monkeypatch)
    with ThreadPoolExecutor(max_workers=2) as threads:
        assert list(threads.map(run, ["together"] * 2, (1, 2))) == alone


@pytest.mark.long
def test_a_run_neither_changes_nor_heeds_the_random_states_and_flags_of_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    expected = weights(fit(*SHORT))
    torch.manual_seed(5)
    first, second = torch.rand(1), torch.rand(1)
    torch.manual_seed(5)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.set_default_dtype(torch.float64)
    try:
        assert weights(fit(*SHORT, "fresh=true")) == expected
        assert (torch.get_default_dtype(), torch.backends.cudnn.benchmark) == (torch.float64, True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert [torch.rand(1), torch.rand(1)] == [first, second]


APP = """
import hydra
from hydra.core.hydra_config import HydraConfig
from esper import fit

@hydra.main(version_base="1.3", config_path=None)
def app(cfg):
    outcomes = [fit({short}, f"rng_seed={{seed}}", run_dir=f"runs of mine/{{seed}}") for seed in (1, 2)]
    print([outcome.exit_code for outcome in outcomes], len(outcomes[0].history["epoch"]), HydraConfig.get().job.name)

app()
"""


@pytest.mark.long
def test_an_application_of_hydra_trains_twice_and_stays_itself(tmp_path: Path):
    (tmp_path / "mine.py").write_text(APP.format(short=", ".join(map(repr, SHORT))))
    command = [sys.executable, "mine.py", "hydra.run.dir=."]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.stdout.rstrip().endswith("[0, 0] 1 mine"), done.stderr
    assert f" run          '{tmp_path}/runs of mine/1'" in done.stdout  # quoted for a shell
    assert "\x1b" not in done.stdout
