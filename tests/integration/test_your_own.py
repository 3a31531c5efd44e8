"""The examples of docs/your_own.md, as they are printed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "your_own.md").read_text()
TRAIN = "import sys; sys.argv[0] = 'esper-train'; from esper.train import main; main()"


def example(name: str, folder: Path) -> Path:
    """Write an example into a file."""
    (block,) = re.findall(rf"^    # {re.escape(name)}\n(?:    .*\n|\n)+", PAGE, re.MULTILINE)
    file = folder / name
    file.write_text(textwrap.dedent(block))
    return file


def run(*command: str, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("name", ["cnn.py", "mlp.py"])
def test_a_script_trains(tmp_path: Path, name: str) -> None:
    run(sys.executable, str(example(name, tmp_path)), folder=tmp_path)
    (status,) = tmp_path.glob("outputs/*/*/status.json")
    result = json.loads(status.read_text())["result"]
    assert status.with_name("report.html").exists()
    assert '"sources"' in status.with_name("recipe.json").read_text()
    assert result["test_loss"] < 0.5  # the mean as the prediction: 0.59; equal probabilities: 2.3


@pytest.mark.long
def test_a_plugin_is_swept(tmp_path: Path) -> None:
    example("my_package.py", tmp_path)
    (command,) = re.findall(r"^    \$ esper-train (.*) \\\n +(.*)\n", PAGE, re.MULTILINE)
    run(sys.executable, "-c", TRAIN, *shlex.split(" ".join(command)), folder=tmp_path)
    runs = list(tmp_path.glob("outputs/*/*/plugins.json"))
    assert len(runs) == 2
    assert [json.loads(file.read_text())["plugins"][0]["module"] for file in runs] == ["my_package"] * 2
