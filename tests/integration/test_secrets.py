"""A canary as password and token in every address, and in variables that settings use: nothing written has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from esper import fit
from esper.errors import ConfigError
from tests.forked import ESPER_TRAIN, run

CANARY = "canary-5d1e7"
VARIABLE = "${oc.env:LAB_CANARY}"
DATA = ["dataset=synthetic", "dataset.num_examples=200", "dataset.image_size=8", "dataset.val_split=0.4"]
MODEL = ["model=resnet_small", "model.widths=[4]", "model.depths=[1]", "dataset.batch_size=32", "morphogenetic=off"]
SMALL = [*DATA, *MODEL, "optimization.max_epochs=1", "optimization.warmup_epochs=0", "device=cpu"]
TEXTS = [f"description='see {VARIABLE}'", f"tags=[a,'{VARIABLE}']"]
ADDRESSES = [
    f"tracking.uri='http://{VARIABLE}@127.0.0.1:9/?token={VARIABLE}'",
    f"redis.url='redis://:{VARIABLE}@127.0.0.1:9/0'",
    f"database.url='postgresql://u:{VARIABLE}@127.0.0.1:9/db?sslpassword={VARIABLE}'",
]


@pytest.fixture(autouse=True)
def _canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("LAB_CANARY", "ESPER_REDIS_PASSWORD", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD"):
        monkeypatch.setenv(name, CANARY)


def assert_nowhere(folder: Path, *texts: str) -> int:
    """No file or text has the canary; returns how many files there are."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    written = {str(path): path.read_bytes() for path in files} | {text[:40]: text.encode() for text in texts}
    assert [name for name, content in written.items() if CANARY.encode() in content] == []
    return len(files)


def test_a_run_whose_servers_are_all_away(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fit(*SMALL, *TEXTS, *ADDRESSES, "bus=redis", "database.record_outcomes=true", "tracking.flush_interval_s=0.05")
    captured = capfd.readouterr()
    assert "is behind" in captured.out
    assert VARIABLE in "".join(path.read_text() for path in tmp_path.rglob("config.yaml"))
    assert assert_nowhere(tmp_path, captured.out, captured.err) > 6


def test_refused_settings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plain = [override.replace(VARIABLE, f"plain-{CANARY}") for override in ADDRESSES]
    for override in (*plain, f"device={VARIABLE}", f"rng_seed={VARIABLE}"):
        with pytest.raises(ConfigError) as error:
            fit(*SMALL, override)
        assert CANARY not in str(error.value)
    captured = capfd.readouterr()
    assert assert_nowhere(tmp_path, captured.out, captured.err) == 0


@pytest.mark.long
def test_a_local_sweep_in_mlflow_and_a_traceback(tmp_path: Path) -> None:
    sweep = ["-m", "hydra/launcher=local", "rng_seed=0,1", "hydra.launcher.poll_s=0.2", *SMALL, *TEXTS, *ADDRESSES[1:]]
    done = run(ESPER_TRAIN, *sweep, "experiment_name=e", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 runs" in done.stdout
    assert len(list(tmp_path.glob("outputs/e/.sweep/*/config.yaml"))) == 2
    assert (tmp_path / "outputs" / "mlflow.db").is_file()
    failed = subprocess.run(
        [sys.executable, "-c", ESPER_TRAIN, *SMALL, *ADDRESSES, f"model.name={VARIABLE}"],
        env={**os.environ, "HYDRA_FULL_ERROR": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert failed.returncode == 2, failed.stderr
    assert assert_nowhere(tmp_path, done.stdout, done.stderr, failed.stdout, failed.stderr) > 20
