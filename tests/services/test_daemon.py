"""PID files of services."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from esper.services import daemon


def test_a_killed_service_that_was_not_reaped_yet_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = psutil.Process(child.pid)
    content = {"pid": child.pid, "created": process.create_time(), "host": socket.gethostname()}
    folder = tmp_path / "outputs" / "services"
    folder.mkdir(parents=True)
    (folder / "first.json").write_text(json.dumps(content))
    assert daemon._process("first") == process
    child.kill()
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert daemon._process("first") is None
    child.wait()
