"""Nothing that names or messages hold can command the terminal; printed commands can be pasted."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from esper.configs import TolariaConfig, TrackingConfig
from esper.console import Console
from esper.errors import one_line
from esper.launch.run import _files
from esper.redact import printable

HOSTILE = "cat\x1b]0;owned\x07\x1b[2J\x9b2Jdog\u202etxt"
SHOWN = r"cat\x1b]0;owned\x07\x1b[2J\x9b2Jdog\u202etxt"


def test_an_error_message_shows_control_characters():
    assert one_line(ValueError(f"class {HOSTILE}\nnext")) == f"class {SHOWN} next"


@pytest.mark.parametrize("text", ["plain", "ä ö 漢字 🌱", "tab\tand\nline", "[bold]"])
def test_other_text_is_printed_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_console_shows_control_characters_of_text_and_keeps_its_own(is_terminal):
    table = Table("name", "value")
    table.add_row(HOSTILE, Text(HOSTILE, style="bold red"))
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, color_system="standard" if is_terminal else None, width=200)
    console.print(table, f"[bold]{HOSTILE}", Text(HOSTILE))
    found = out.getvalue()
    assert ("\x1b[1;31m" in found) == is_terminal
    for command in ("\x1b]0;", "\x1b[2J", "\x9b", "\x07", "\u202e"):
        assert command not in found
    assert r"\x1b]0;owned" in found


@pytest.mark.parametrize("folder", ["a b", "it's", "50%?", "a#b;rm", "$HOME", "ü"])
def test_the_printed_mlflow_command_can_be_pasted(folder, tmp_path: Path):
    uri = f"sqlite:///{tmp_path / folder}/m.db"
    command = _files(TolariaConfig(tracking=TrackingConfig(uri=uri)), tmp_path / "run")["mlflow"]
    assert shlex.split(command) == ["mlflow", "ui", "--backend-store-uri", uri]
