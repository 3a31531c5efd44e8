"""What is recorded about the machine and the user's code."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from esper.tracking.environment import environment, git_diff, without_credentials


def git(*arguments: str) -> None:
    identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.invalid"]
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    git("init")
    git("remote", "add", "origin", "https://user:s3cret@example.invalid/code.git")
    (tmp_path / "train.py").write_text("rate = 1\n")
    git("add", "train.py")
    git("commit", "-m", "first")
    return tmp_path


def test_the_commit_is_recorded_and_the_remotes_password_is_not(repository: Path) -> None:
    found = environment()
    assert found["git_commit"] is not None
    assert len(found["git_commit"]) == 40
    assert found["git_dirty"] == "false"
    assert found["git_remote"] == "https://example.invalid/code.git"
    assert None not in (found["python"], found["torch"], found["platform"], found["hostname"])


def test_the_diff_can_be_applied_and_holds_no_password(repository: Path) -> None:
    (repository / "train.py").write_text("url = 'postgres://me:s3cret@db/x'\n")
    assert environment()["git_dirty"] == "true"
    diff = git_diff()
    assert "postgres://db/x" in diff
    assert "s3cret" not in diff
    (repository / "saved.diff").write_text(diff)
    git("checkout", "train.py")
    git("apply", "saved.diff")
    assert (repository / "train.py").read_text() == "url = 'postgres://db/x'\n"


def test_a_long_diff_is_cut(repository: Path) -> None:
    (repository / "train.py").write_text("é" * 1000)
    diff = git_diff(limit_bytes=501)
    assert diff.endswith("(cut at 501 bytes)\n")
    assert len(diff.encode()) < 540


def test_outside_a_repository_nothing_is_known_of_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = environment()
    assert (found["git_commit"], found["git_dirty"], found["git_remote"]) == (None, None, None)
    assert git_diff() == ""
    assert capfd.readouterr() == ("", "")


def test_credentials_go_and_mail_addresses_stay() -> None:
    text = "https://a:b@c/d, redis://:p@ss@h:1/0 and ftp://h/x by me@h"
    assert without_credentials(text) == "https://c/d, redis://h:1/0 and ftp://h/x by me@h"
