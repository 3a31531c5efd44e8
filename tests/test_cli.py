"""The command `esper`: subcommands and exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from esper import __version__
from esper.cli import main

ROOT = Path(__file__).resolve().parents[1]


def test_version_is_printed(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"esper {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["sync"], ["simic", "--out", "policy.safetensors"], ["export", "--out", "exported"]]
)
def test_a_folder_without_a_run_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
):
    with pytest.raises(SystemExit) as ended:
        main([arguments[0], str(tmp_path), *arguments[1:]])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert str(tmp_path) in told
    assert told.count("\n") == 1


def test_help_imports_neither_torch_nor_mlflow():
    script = """
import sys
from esper.cli import main
try:
    main(["--help"])
finally:
    print("HEAVY", sorted({"torch", "mlflow", "hydra"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "simic" in done.stdout
    assert "HEAVY []" in done.stdout
