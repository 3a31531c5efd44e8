"""Plots whatever MPLBACKEND says."""

from __future__ import annotations

import os
import subprocess
import sys

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
