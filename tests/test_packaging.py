"""What is installed works away from the checkout, and what is pinned covers what is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.long
def test_a_built_wheel_runs_from_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in ("esper", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")

    monkeypatch.delenv("PYTHONPATH", raising=False)  # it would come before the wheel
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    install = ["--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    # The dependencies come from this environment; Esper itself, were it installed there, comes after the wheel.
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    command = [str(python.with_name("esper-train")), "--cfg", "job", "experiment=debug"]
    shown = subprocess.run(command, cwd=elsewhere, check=True, capture_output=True, text=True)
    assert "experiment_name: debug" in shown.stdout
    where = [str(python), "-c", "from esper.configs.compose import conf_folder; print(conf_folder())"]
    found = subprocess.run(where, cwd=elsewhere, check=True, capture_output=True, text=True)
    assert Path(found.stdout.strip()) == site / "esper" / "conf"
    places = {"esper": site / "esper", "conf": site / "esper" / "conf", "hydra_plugins": site / "hydra_plugins"}
    for folder, installed in ((source / name, place) for name, place in places.items()):
        files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
        assert not [str(file) for file in files if not (installed / file).exists()]


def test_every_direct_dependency_is_pinned_and_no_index_is_named():
    constraints = (ROOT / "constraints.txt").read_text()
    assert "://" not in constraints
    assert "--" not in constraints
    pinned = set(re.findall(r"^([a-z0-9-]+)==", constraints, flags=re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {
        re.split(r"[<>=\[ ]", one)[0] for one in project["dependencies"] + project["optional-dependencies"]["dev"]
    }
    assert needed <= pinned
