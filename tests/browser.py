"""A page in Chromium, without a window: what its scripts make of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

_PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_chromium = pytest.mark.skipif(
    _PROGRAM is None and "ESPER_REQUIRE_CHROMIUM" not in os.environ, reason="Chromium is not installed"
)


def dom(address: str | Path, profile: Path, *, wait_ms: int = 2000) -> str:
    """The document after its scripts ran for `wait_ms` of the page's own time, as HTML."""
    assert _PROGRAM is not None, "Chromium is not installed"
    address = address if isinstance(address, str) else address.absolute().as_uri()
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--window-size=900,1200"]
    command = [_PROGRAM, *options, f"--virtual-time-budget={wait_ms}", "--dump-dom", address]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def with_script(page: Path, script: str) -> Path:
    """A copy of a page that also runs a script, which its policy forbids, after it has loaded."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page.read_text())
    copy = page.with_name("scripted.html")
    copy.write_text(text.replace("</body>", f"<script>addEventListener('load', () => {{ {script} }});</script></body>"))
    return copy
