"""What is recorded about the machine and the user's code."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from esper import fit
from esper.tracking import read
from esper.tracking.environment import environment, git_diff


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
    git("checkout", "-b", "faster")
    assert environment()["git_branch"] == "faster"
    git("checkout", "--detach")
    assert environment()["git_branch"] is None
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


def dirty(repository: Path, *folders: str) -> str | None:
    return environment(written_to=[repository / folder for folder in folders])["git_dirty"]


def test_what_runs_write_leaves_a_checkout_clean_and_other_files_do_not(repository: Path) -> None:
    for file in ("outputs/e/run/journal.jsonl", "work [1]/outputs/x"):
        (repository / file).parent.mkdir(parents=True)
        (repository / file).touch()
    assert dirty(repository, "outputs", "work [1]/outputs") == "false"
    assert dirty(repository, "outputs", "../elsewhere") == "true"  # beside the checkout: nothing to leave out
    (repository / "work [1]" / "model.py").touch()
    assert dirty(repository, "outputs", "work [1]/outputs") == "true"


def test_a_run_in_the_checkouts_own_folder_hides_no_change(repository: Path) -> None:
    (repository / "model.py").touch()
    assert dirty(repository, ".") == "true"


def test_from_a_subfolder_the_whole_checkout_counts(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "sub" / "outputs").mkdir(parents=True)
    (repository / "sub" / "outputs" / "x").touch()
    monkeypatch.chdir(repository / "sub")
    assert dirty(repository, "sub/outputs") == "false"
    (repository / "train.py").write_text("rate = 2\n")
    assert dirty(repository, "sub/outputs") == "true"


def test_runs_in_a_clean_checkout_are_clean_and_keep_the_diff_to_their_owner(repository: Path) -> None:
    data = ["dataset=synthetic", "dataset.num_examples=200", "dataset.image_size=8", "dataset.val_split=0.4"]
    small = ["model=resnet_small", "model.widths=[4]", "model.depths=[1]", "dataset.batch_size=32", "tracking=none"]
    short = ["optimization.max_epochs=1", "optimization.warmup_epochs=0", "morphogenetic=off"]
    alone = [*data, *small, *short, "checkpoint.checkpoint_dir=ck"]
    for seed in (0, 1):
        run_dir = fit(*alone, f"rng_seed={seed}").run_dir
        (start,) = (event for event in read(run_dir / "journal.jsonl") if event["kind"] == "run_started")
        assert start["environment"]["git_dirty"] == "false"
    assert stat.S_IMODE((run_dir / "git.diff").stat().st_mode) == 0o600


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
