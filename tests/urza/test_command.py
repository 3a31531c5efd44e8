from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esper.cli import main
from tests.urza.definitions import content, text

Esper = Callable[..., tuple[int, str]]


@pytest.fixture
def esper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Esper:
    """Run the command in an empty folder; its exit code, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main(["urza", *arguments])
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out + printed.err

    return run


def listed(esper: Esper) -> dict[str, Any]:
    code, printed = esper("list", "--json")
    assert code == 0
    return {row["blueprint"]: row for row in json.loads(printed)}


def test_what_is_imported_is_listed_beside_what_is_built_in(esper: Esper):
    assert "conv1x1" in listed(esper)
    assert not Path("outputs").exists()
    Path("my.json").write_text(text())
    code, printed = esper("import", "my.json")
    assert (code, printed) == (0, "wide_depthwise@04537be1d294\n")
    assert listed(esper)["wide_depthwise@04537be1d294"]["complexity"] == 4


def test_what_is_exported_reads_back_as_it_was(esper: Esper):
    Path("my.json").write_text(text())
    esper("import", "my.json")
    assert esper("export", "wide_depthwise", "--out", "again.json") == (0, "")
    assert json.loads(Path("again.json").read_text()) == content()
    assert esper("import", "again.json", "--database", "sqlite:///elsewhere/urza.db")[0] == 0
    code, printed = esper("export", "wide_depthwise", "--database", "sqlite:///elsewhere/urza.db")
    assert (code, json.loads(printed)) == (0, content())


def test_a_blueprint_is_shown_with_its_layers(esper: Esper):
    Path("my.json").write_text(text())
    esper("import", "my.json")
    code, printed = esper("show", "wide_depthwise", "--json")
    assert (code, json.loads(printed)["definition"]) == (0, content())
    assert "arXiv:2201.03545" in esper("show", "wide_depthwise")[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "squeeze_exite"], "did you mean squeeze_excite?"),
        (["export", "conv1x1"], "'conv1x1' is built in"),
        (["import", "missing.json"], "missing.json: cannot be read (No such file or directory)"),
        (["import", "/dev/zero"], "/dev/zero: 65,537 bytes; a definition has at most 65,536"),
        (["record", "."], "no journal.jsonl in ."),
        (["characterise", "conv1x1", "--site", "3xx3"], "--site 3xx3: give CHANNELSxHEIGHTxWIDTH"),
        (["list", "--database", "sqlite:///none.db"], "none.db holds no blueprint library"),
    ],
)
def test_bad_input_is_an_error_of_one_line_with_exit_code_2(esper: Esper, arguments: list[str], says: str):
    code, printed = esper(*arguments)
    assert code == 2
    assert says in printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


def test_characterising_prints_its_results_and_the_library_lists_them(esper: Esper):
    sites = ["--site", "8x4x4", "--batch-size", "4", "--device", "cpu", "--no-compile"]
    code, printed = esper("characterise", "layer_scale", *sites)
    assert code == 0
    assert "layer_scale  8x4x4 to 8x4x4  batch 4  ready" in printed
    assert listed(esper)["layer_scale"]["kernels"] == 1
    assert "8x4x4" in esper("show", "layer_scale")[1]


def test_help_needs_neither_torch_nor_a_database():
    code = "import sys; from esper.cli import main\ntry: main(['urza', 'list', '--help'])\nexcept SystemExit: pass\n"
    check = "assert not {'torch', 'sqlalchemy', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code + check], check=True, capture_output=True)
