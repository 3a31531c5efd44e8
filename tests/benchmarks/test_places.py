"""Files and folders that a benchmark cannot use are told in one line, before it measures anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import growing_report, insertion, memory, plan, plan_curves

KEYS = {"cell": "", "role": "plan", "name": "", "seed": 0}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "result.json").write_text(json.dumps({"a": 1, "b": 2}, indent=1))
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(KEYS)}\n")
    (tmp_path / "images" / "train").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("main", "name", "reason"),
    [
        (plan, "none.jsonl", "No such file"),
        (plan, "picture.png", "'utf-8' codec"),
        (plan, "result.json", "its lines are not rows with cell, role, name, seed"),
        (plan_curves, "none.jsonl", "No such file"),
        (growing_report, "images", "Is a directory"),
        (growing_report, "rows.jsonl", "its lines are not rows with study, arm, seed"),
    ],
)
def test_rows_that_cannot_be_read_are_one_line(folder: Path, main: object, name: str, reason: str) -> None:
    arguments = ["--report", "--out", name] if main is plan else [name]
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)  # type: ignore[attr-defined]
    assert str(ended.value).startswith(f"{name}: ")
    assert reason in str(ended.value)
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (memory, ("--out", "images"), "--out: images is a folder; name a file"),
        (memory, ("--out", "result.json/memory.json"), "--out: result.json is a file; name a folder"),
        (plan, ("--report", "--out", "images"), "--out: images is a folder; name a file"),
        (insertion, ("--out", "result.json", "--data", "images"), "--out: result.json is a file; name a folder"),
        (insertion, ("--out", "out", "--data", "none"), "--data: none has no folder train/"),
        (insertion, ("--out", "out", "--data", "images"), "--data: images has no folder test/"),
    ],
)
def test_places_that_cannot_be_used_are_refused_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, main: object,
    arguments: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main.main() if main is insertion else main.main(arguments)  # type: ignore[attr-defined]
    assert f"error: argument {message}" in capsys.readouterr().err
