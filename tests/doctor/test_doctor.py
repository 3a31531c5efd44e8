"""The command `esper doctor`: rows, summary, exit codes, time limits, no credentials."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from esper.doctor import command, machine
from esper.doctor.finding import FAILED, OK, WARNING
from tests.doctor.conftest import CANARY, ROOT, esper_doctor, rows
from tests.oona.server import RedisServer

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_the_last_line_is_all_well_or_counts_the_warnings():
    done = esper_doctor("device=cpu", "dataset=digits", "tracking=none")
    assert done.returncode == 0, done.stdout
    *table, verdict = done.stdout.splitlines()
    assert verdict == "all well" or re.fullmatch(r"\d warnings?: .*", verdict)
    assert any(line.startswith("torch ") and "ok" in line for line in table)


def test_json_has_a_row_for_each_check_and_a_remedy_for_each_problem(broken_torch: str):
    done = esper_doctor("tracking=wandb", "--json", PYTHONPATH=broken_torch, NETRC="/nowhere")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert [set(row) for row in found] == [{"name", "status", "found", "remedy"}] * len(found)
    assert all(bool(row["remedy"]) == (row["status"] in (WARNING, FAILED)) for row in found)
    assert all("\n" not in row["remedy"] for row in found)
    assert {row["name"] for row in found if row["status"] == FAILED} == {"torch", "wandb"}
    assert "libcudart" in next(row["found"] for row in found if row["name"] == "torch")


def test_a_torch_that_crashes_is_a_failed_row(tmp_path: Path):
    (tmp_path / "torch.py").write_text("import os\nos.abort()\n")
    done = esper_doctor("--json", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 1
    assert rows(done)["torch"]["status"] == FAILED
    assert "-6" in rows(done)["torch"]["found"]


def test_a_broken_omegaconf_fails_one_row(tmp_path: Path):
    (tmp_path / "omegaconf.py").write_text("raise ImportError('of another Hydra')\n")
    done = esper_doctor("--json", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 1, done.stderr
    assert rows(done)["settings"]["status"] == FAILED
    assert rows(done)["packages"]["status"] == OK


@pytest.mark.parametrize("arguments", [["optimization.lerning_rate=1"], ["--nonsense"], ["model=resnet19"]])
def test_bad_input_is_exit_code_2(arguments: list[str]):
    done = esper_doctor(*arguments)
    assert done.returncode == 2
    assert not done.stdout


def test_servers_that_hang_do_not_hang_the_doctor(broken_torch: str, black_hole: int, redis_server: RedisServer):
    server = redis_server.start()
    server.stop()
    began = time.monotonic()
    done = esper_doctor(
        *("bus=redis", f"redis.url={server.url}", f"tracking.uri=http://127.0.0.1:{black_hole}"),
        "--json",
        PYTHONPATH=broken_torch,
        ESPER_REDIS_PASSWORD=CANARY,
    )
    assert time.monotonic() - began < 30  # two seconds each, in parallel; plus the start of Python
    for name in ("redis", "mlflow"):
        assert rows(done)[name]["status"] == FAILED
        assert "no response within 2 s" in rows(done)[name]["found"]
    assert CANARY not in done.stdout + done.stderr


def test_no_credential_is_ever_printed(broken_torch: str, redis_server: RedisServer):
    server = redis_server.start("--user", "other", "on", f">{CANARY}x", "~*", "+@all")
    secrets = {
        "ESPER_REDIS_URL": f"redis://u:{CANARY}@127.0.0.1:{server.port}",
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": CANARY,
        "MLFLOW_TRACKING_TOKEN": CANARY,
        "WANDB_API_KEY": CANARY,
        "PGPASSWORD": CANARY,
    }
    for overrides in (
        ["bus=redis", "tracking=both", "tracking.uri=http://127.0.0.1:1", "database=postgres"],
        ["bus=redis", f"tracking.uri='postgresql://lab@127.0.0.1:1/x?password={CANARY}'"],
        ["bus=redis", f"database.url='postgresql://lab@127.0.0.1:1/x?password={CANARY}'"],
        [f"redis.url=redis://u:{CANARY}@h:1/0"],
        [f"redis.url=redis://u:{CANARY}=@h:1/0"],
    ):
        for form in ((), ("--json",)):
            done = esper_doctor(*overrides, *form, PYTHONPATH=broken_torch, **secrets)
            assert done.returncode in (1, 2)
            assert CANARY not in done.stdout + done.stderr


def test_a_check_that_raises_is_a_failed_row_and_the_others_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PGPASSWORD", CANARY)

    def breaks() -> Any:
        raise RuntimeError(f"{CANARY} at redis://u:{CANARY}@h")

    found = command._run_parallel({"a": breaks, "b": machine.memory})
    assert found["a"].status == FAILED
    assert CANARY not in found["a"].found
    assert found["b"].status in (OK, WARNING)


def test_a_check_that_hangs_is_a_failed_row(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command, "_DEADLINE_S", 0.2)
    release = threading.Event()
    found = command._run_parallel({"a": release.wait, "b": machine.memory})  # type: ignore[dict-item]
    release.set()
    assert found["a"].status == FAILED
