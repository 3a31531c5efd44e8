"""What a terminal shows before anything is imported, and that nothing else sees it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from esper import __version__

ROOT = Path(__file__).resolve().parents[1]
START = "import sys; sys.argv[0] = 'esper-train'; from esper.start import main; main()"
ERASED = "\r\x1b[K"


def on_terminal(*arguments: str, cwd: Path, **env: str) -> str:
    """All that a terminal gets of a command."""
    mine, its = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "PYTHONIOENCODING": "utf-8", **env}
    with subprocess.Popen([sys.executable, "-c", START, *arguments], cwd=cwd, env=environment, stdin=its, stdout=its,
                          stderr=its) as process:  # fmt: skip
        os.close(its)
        shown = b""
        try:
            while piece := os.read(mine, 4096):
                shown += piece
        except OSError:  # the other end is closed
            pass
        finally:
            process.kill()
            os.close(mine)
    return shown.decode()


def test_a_terminal_shows_a_line_until_there_is_something_else_to_print(tmp_path: Path) -> None:
    shown = on_terminal("--version", cwd=tmp_path)
    line, _, rest = shown.partition(ERASED)
    assert " esper-train: starting  0:" in line
    assert rest == f"esper-train {__version__}\r\n"


def test_it_moves_while_modules_are_imported_and_an_error_stands_in_a_line_of_its_own(tmp_path: Path) -> None:
    shown = on_terminal("model=nonsense", cwd=tmp_path)
    line, _, rest = shown.partition(ERASED)
    frames = line.split("\r")[1:]
    assert all(" esper-train: starting  0:" in frame for frame in frames)
    assert len({frame[0] for frame in frames}) > 1
    assert "starting" not in rest
    assert rest.startswith("error: ")


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"RANK": "1"}], ids=["a terminal without control codes", "rank 1"])
def test_where_a_line_cannot_move_there_is_none(env: dict[str, str], tmp_path: Path) -> None:
    assert on_terminal("--version", cwd=tmp_path, **env) == f"esper-train {__version__}\r\n"


def test_nothing_of_it_is_in_a_pipe_and_nothing_large_is_imported_for_it(tmp_path: Path) -> None:
    heavy = "{'hydra', 'omegaconf', 'rich', 'torch', 'yaml'}"
    code = f"import sys; import esper.start; print(sorted({heavy} & set(sys.modules))); {START}"
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"[]\nesper-train {__version__}\n"
    assert not done.stderr
