"""What the command imports before its first step, and that the start-up benchmark tells where the time goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import startup

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    *("model=resnet_small", "model.widths=[4,8]", "model.depths=[2,2]", "model.target_layers=[layer1,layer2]"),
    *("dataset.batch_size=8", "device=cpu", "tracking.flush_interval_s=600"),
)
NOT_NEEDED_YET = {
    *("mlflow", "matplotlib", "sklearn", "scipy", "sqlalchemy", "alembic", "pandas", "jinja2", "requests"),
    *("torch._dynamo", "torch._inductor", "sympy", "torchvision", "onnx", "timm", "lightning"),
}
OUTCOME = """
import sys
sys.argv[0] = "esper-train"
from esper.train import main
try:
    main()
finally:
    print("IMPORTED", sorted({"mlflow", "matplotlib", "jinja2"} & set(sys.modules)))
"""


def run(command: list[str], *, cwd: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_nothing_is_imported_before_the_first_step_that_it_does_not_need(tmp_path: Path, optimizer: str) -> None:
    marks = tmp_path / "marks.json"
    child = str(ROOT / "benchmarks" / "startup_child.py")
    settings = [*TINY, f"optimization.optimizer={optimizer}"]
    run([sys.executable, child, str(marks), "dataset=synthetic", "tracking=mlflow", *settings], cwd=tmp_path)
    found = json.loads(marks.read_text())
    assert {"torch", "esper.tolaria.step", "esper.tracking.mlflow"} <= set(found["modules"])
    assert not NOT_NEEDED_YET & set(found["modules"])


@pytest.mark.long
def test_the_page_and_the_tracker_come_when_training_is_over(tmp_path: Path) -> None:
    short = ("experiment=debug", "tracking=mlflow", "tracking.flush_interval_s=600", "logging.log_interval=1000")
    assert "IMPORTED ['jinja2', 'matplotlib', 'mlflow']" in run([sys.executable, "-c", OUTCOME, *short], cwd=tmp_path)
    assert list(tmp_path.glob("outputs/debug/*/report.html"))


@pytest.mark.long
def test_each_phase_of_the_start_is_timed_with_and_without_cached_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "startup.json"
    startup.main(
        [
            *("--out", str(out), "--device", "cpu", "--repetitions", "1", "--files", "240", "--tracking", "none"),
            *(one for one in TINY if not one.startswith("device=")),
        ]
    )
    measured = json.loads(out.read_text())["seconds"]
    assert list(measured) == [
        "made up, in memory",
        "image folder, 240 files, not cached",
        "image folder, 240 files, cached",
    ]
    for (phases,) in measured.values():
        assert tuple(phases) == (*startup.PHASES, "CPU seconds")
        assert min(phases.values()) >= 0
        assert phases["imports of the run"] > 0.1
    (phases,) = measured["image folder, 240 files, cached"]
    told = (
        "met" if sum(phases[name] for name in startup.PHASES) <= 10 else "MISSED"
    )  # which of them is no matter of a test
    assert f"image folder, 240 files, cached: goal <= 10 s: {told}" in capsys.readouterr().out
