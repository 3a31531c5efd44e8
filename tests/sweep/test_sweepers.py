"""Hydra sweepers that search get the validation accuracy of the runs from every launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAIN = "import sys; sys.argv[0] = 'esper-train'; from esper.train import main; main()"
SWEEPER = """
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper


class Search(Sweeper):
    def setup(self, *, hydra_context, task_function, config):
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        for number, rate in enumerate(("0.05", "0.01")):
            (found,) = self.launcher.launch([[*arguments, f"optimization.learning_rate={rate}"]], number)
            print("FOUND", rate, found.return_value)
"""


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_a_sweeper_that_searches_gets_the_validation_accuracy(tmp_path: Path, launcher: str):
    plugin = tmp_path / "hydra_plugins" / "search" / "__init__.py"
    group = tmp_path / "conf" / "hydra" / "sweeper" / "search.yaml"
    for path, text in ((plugin, SWEEPER), (group, "_target_: hydra_plugins.search.Search\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    overrides = ["experiment=debug", "debug_mode=false", "morphogenetic=off", f"hydra/launcher={launcher}"]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, "-m", *overrides, "hydra/sweeper=search", "--config-dir", str(tmp_path / "conf")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    found = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("FOUND"))
    for rate, accuracy in found.items():
        (status,) = (tmp_path / "outputs" / "debug").glob(f"*_{rate}-*/status.json")
        assert float(accuracy) == json.loads(status.read_text())["result"]["val_accuracy"]
    assert list(found) == ["0.05", "0.01"]
