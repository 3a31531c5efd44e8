"""Plots whatever MPLBACKEND says, and whatever another thread imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PLOT = """
import os
from esper.planning import plots
from esper.report.svg import svg
import matplotlib
print(svg(lambda axes: axes.plot([1, 2]), height=2)[:4], os.environ["MPLBACKEND"], matplotlib.rcParams["backend"])
"""


@pytest.mark.parametrize(("given", "used"), [("foo", "agg"), ("pdf", "pdf")])
def test_pages_are_drawn_whatever_the_backend_of_matplotlib_is(given: str, used: str) -> None:
    environment = {**os.environ, "MPLBACKEND": given}
    environment.pop("DISPLAY", None)
    done = subprocess.run(
        [sys.executable, "-c", _PLOT], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["<svg", given, used]


_PLOT_DURING_IMPORT = """
import importlib, sys, threading
threading.Thread(target=importlib.import_module, args=["IPython"]).start()
while "IPython" not in sys.modules:
    pass
from esper.report.svg import svg
print(svg(lambda axes: axes.plot([1, 2]), height=2)[:4])
"""


def test_plots_wait_for_an_ipython_that_another_thread_is_importing(tmp_path: Path) -> None:
    (tmp_path / "IPython.py").write_text("import time; time.sleep(2); version_info = (9, 0)")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", _PLOT_DURING_IMPORT], env=environment, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "<svg\n"), done.stderr
