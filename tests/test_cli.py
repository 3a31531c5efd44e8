"""The command `esper`: subcommands and exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from esper import __version__
from esper.cli import _parser, main

ROOT = Path(__file__).resolve().parents[1]


def test_version_is_printed(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"esper {__version__}\n"


def test_version_is_an_option_too(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"esper {__version__}\n"


def test_options_may_follow_and_stand_between_arguments():
    parse = _parser().parse_args
    assert parse(["report", "a", "--baseline", "x", "b", "--target", "0.9"]).paths == [Path("a"), Path("b")]
    assert parse(["doctor", "bus=redis", "--json", "rng_seed=1"]).overrides == ["bus=redis", "rng_seed=1"]
    assert parse(["runs", "list", "--reverse", "x", "--json"]).folder == Path("x")
    assert parse(["services", "up", "--only", "tamiyo", "a=b", "--detach", "c=d"]).overrides == ["a=b", "c=d"]


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["ru"], "runs"),
        (["runs", "r"], "rm"),
        (["runs", "list", "--rev"], "--reverse"),
        (["runs", "list", "--sort", "fig"], "figure"),
        (["report", "tests/test_cl"], "tests/test_cli.py"),
    ],
)
def test_bash_completes(words: list[str], completed: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["completion", "bash"])
    script = capsys.readouterr().out
    call = f'COMP_WORDS=(esper {" ".join(words)}); COMP_CWORD={len(words)}; _shtab_esper; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", f"{script}\n{call}"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [completed], done.stderr


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


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("policy.txt", "must be a .safetensors file, a policy from runs, or a .json file"),
        ("taken.json", "is a folder; name a file"),
        ("file/new/policy.safetensors", "/file is no folder; choose another place"),
    ],
)
def test_a_policy_file_that_cannot_be_written_is_refused_before_a_run_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str, told: str
):
    monkeypatch.chdir(tmp_path)
    Path("taken.json").mkdir()
    Path("file").touch()
    with pytest.raises(SystemExit) as ended:
        main(["simic", "nowhere", "--out", out])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --out {out}: ")
    assert told in error


def test_help_imports_neither_torch_nor_mlflow():
    script = """
import sys
from esper.cli import _parser, main
try:
    main(["--help"])
finally:
    print("HEAVY", sorted({"torch", "mlflow", "hydra"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "simic" in done.stdout
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "RUN", ""],
        ["predict", "RUN", "x.png", "--out", ""],
        ["evaluate", "RUN", ""],
        ["export", ""],
        ["export", "RUN", "--check="],
        ["report", "RUN", ""],
        ["runs", ""],
        ["watch", ""],
        ["sweep", "status", ""],
    ],
)
def test_an_empty_path_is_not_the_current_folder(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "'': names no file or folder" in capsys.readouterr().err
