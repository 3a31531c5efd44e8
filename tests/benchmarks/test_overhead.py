"""The overhead benchmark compares what it says, in pairs, and says what it did not run."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest

from benchmarks import overhead
from benchmarks.epoch_end import PARTS
from benchmarks.measuring import paired_ratio, table
from esper.tracking import read

SMALL = ("--devices", "cpu", "--pairs", "3", "--block-seconds", "0.02")


def test_dormant_seeds_are_compared_with_off_in_blocks_of_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {"model": "resnet_small", "num_examples": 320, "image_size": 8}
    monkeypatch.setitem(overhead._DEVICE_SETTINGS, "cpu", tiny)
    out = tmp_path / "overhead.json"
    overhead.main([*SMALL, "--parts", "seeds", "--out", str(out)])
    (row,) = json.loads(out.read_text())["rows"]
    assert {name: len(seconds) for name, seconds in row["seconds"].items()} == {"off": 3, "default": 3}
    logs = [
        math.log(off / default) for off, default in zip(*(row["seconds"][k] for k in ("off", "default")), strict=True)
    ]
    assert row["speed"]["mean"] == pytest.approx(math.exp(sum(logs) / 3))
    assert row["speed"]["low"] < row["speed"]["mean"] < row["speed"]["high"]
    printed = capsys.readouterr().out
    assert "| dormant seeds / off, steps | cpu, batch 32 | 3 |" in printed
    assert "goal >= 0.99: " in printed


def test_whole_epochs_are_compared_and_what_their_ends_take_is_told_by_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = ["model=resnet_small", "model.widths=[4,8]", "model.depths=[2,2]", "model.target_layers=[layer1,layer2]"]
    monkeypatch.setitem(overhead._EPOCH_SETTINGS, "cpu", [*tiny, "dataset.image_size=8", "dataset.num_examples=320"])
    out = tmp_path / "epochs.json"
    overhead.main(
        [*("--devices", "cpu", "--parts", "epochs", "--out", str(out)), "--epoch-pairs=2", "--epoch-seconds=0.01"]
    )
    off, bare = json.loads(out.read_text())["rows"]
    assert {name: len(seconds) for name, seconds in off["seconds"].items()} == {"off": 2, "default": 2}
    assert {name: len(seconds) for name, seconds in bare["seconds"].items()} == {"bare": 2, "default": 2}
    assert off["end_s"].keys() == PARTS.keys()
    assert all(0 < seconds < statistics.mean(off["seconds"]["default"]) for seconds in off["end_s"].values())
    printed = capsys.readouterr().out
    assert "dormant default / off, end to end, cpu, batch 32: goal >= 0.97: " in printed
    assert "| begin checkpoints |" in printed


def test_without_mlflow_the_tracker_is_reported_as_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    overhead.main(["--parts", "tracker", "--out", str(tmp_path / "overhead.json")])
    assert "tracker: not run, MLflow is not installed here" in capsys.readouterr().out


@pytest.mark.long
def test_a_training_with_a_server_that_never_answers_is_timed_like_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(overhead, "_TRACKERS", ("none", "hung"))
    out = tmp_path / "overhead.json"
    told: list[str] = []

    def kept(run_dir: Path, tracker: str, *, uri: str | None, epochs: int) -> overhead._Training:
        found = trained(run_dir, tracker, uri=uri, epochs=epochs)
        told.extend(event["message"] for event in read(run_dir / "journal.jsonl") if event["kind"] == "notice")
        return found

    trained = overhead._train
    monkeypatch.setattr(overhead, "_train", kept)
    overhead.main(["--parts", "tracker", "--out", str(out), "--tracked-runs", "1", "--tracked-epochs", "4"])
    rows = json.loads(out.read_text())["rows"]
    assert [row["what"] for row in rows] == [
        "tracker hung / none, whole training",
        "tracker hung / none, epochs of the second half",
    ]
    assert all(seconds > 0 for row in rows for values in row["seconds"].values() for seconds in values)
    assert any("is behind" in line for line in told)


def test_the_interval_of_a_paired_ratio_is_students() -> None:
    ratio = paired_ratio([1.0, 4.0], [1.0, 1.0])
    # mean of the logarithms ln 2, standard error ln 2, t(1 degree of freedom) 12.706
    assert ratio.mean == pytest.approx(2.0)
    assert ratio.high == pytest.approx(2.0 ** (1 + 12.7062), rel=1e-4)
    assert paired_ratio([3.0], [2.0]).low is None


@pytest.mark.parametrize(
    ("speeds", "told"),
    [([0.999, 1.0, 1.001], "met"), ([0.97, 0.971, 0.972], "MISSED"), ([0.9, 1.1, 1.0], "undecided by 3 pairs")],
)
def test_a_goal_is_met_or_missed_only_where_the_whole_interval_is(speeds: list[float], told: str) -> None:
    row = {"what": "seeds", "where": "cpu", "speed": paired_ratio(speeds, [1.0] * 3)}
    assert overhead._goal(row).startswith(f"seeds, cpu: goal >= 0.99: {told}")


def test_a_table_shows_what_is_missing() -> None:
    assert table([{"a": 1, "b": None}]) == "| a | b |\n| --- | --- |\n| 1 | – |"
    assert table([]) == "(nothing was measured)"
