"""The journal holds every event, whatever happens while it is written."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import resource
import tempfile
import threading
import typing
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.configs import TolariaConfig
from esper.contracts import events
from esper.contracts.decisions import AdaptationDecision
from esper.contracts.events import Event, Notice
from esper.contracts.health import HealthSignal
from esper.contracts.lifecycle import SeedLifecycleState
from esper.errors import RunError
from esper.tracking.journal import Journal, mend, read, read_from, run_folders
from tests.conftest import result_of

KINDS = [cls for name in events.__all__ if isinstance(cls := getattr(events, name), type) and cls is not Event]
T = TypeVar("T")
COUNTS = st.integers(0, 2**63 - 1)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "config": st.builds(lambda tags: dataclasses.asdict(TolariaConfig(tags=tags)), st.lists(st.text())),
    "decision": st.builds(
        dataclasses.asdict, st.builds(AdaptationDecision, should_adapt=st.just(False), reasoning=st.text())
    ),
    "status": st.just("finished"),
    "result": st.builds(result_of, seconds=st.floats(0, 1e9), test_loss=st.floats()),
    "level": st.sampled_from(["DEBUG", "INFO", "WARNING", "ERROR"]),
}


def fields_of(cls: type[T]) -> st.SearchStrategy[T]:
    """Instances with whole numbers that a run may write."""
    hints = {key: hint for key, hint in typing.get_type_hints(cls).items() if key != "kind"}
    given = {
        int: COUNTS,
        int | None: COUNTS | st.none(),
        tuple[int, ...]: st.lists(COUNTS).map(tuple),
        dict[str, int]: st.dictionaries(st.text(), COUNTS),
    }
    return st.builds(cls, **{key: FIELDS.get(key, given.get(hint, st.from_type(hint))) for key, hint in hints.items()})


FIELDS["signals"] = st.lists(st.builds(dataclasses.asdict, fields_of(HealthSignal)), max_size=2)


def as_json(value: Any) -> Any:
    """What a value must read as: the same, but for what JSON has no word for."""
    if isinstance(value, dict):
        return {key: as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path | SeedLifecycleState) else value


def notices(journal: Journal, *messages: str) -> None:
    for message in messages:
        journal.write(Notice(step=1, level="INFO", message=message))


def messages(path: Path) -> list[str]:
    return [event["message"] for event in read(path)]


@given(st.one_of([fields_of(kind) for kind in KINDS]))
def test_any_event_reads_back_as_it_was(event: Event) -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder, "journal.jsonl"))
        journal.write(event)
        journal.close()
        (found,) = read(journal.path)
        assert isinstance(found.pop("time_unix_s"), float)
        assert found == {"kind": event.kind, **as_json(dataclasses.asdict(event))}


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write(events.Validated(step=1, epoch=0, val_loss=math.nan, val_metrics={"accuracy": math.inf}))
    journal.close()
    found = json.loads(journal.path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert found["val_loss"] is None


def test_a_line_that_a_crash_cut_short_is_left_out_and_removed_on_opening(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    notices(journal, "first")
    journal.close()
    whole = path.stat().st_size
    with path.open("ab") as file:
        file.write(b'{"kind": "notice", "mess')
    assert messages(path) == ["first"]
    journal = Journal(path)
    assert journal.sync() == whole
    notices(journal, "second")
    journal.close()
    assert messages(path) == ["first", "second"]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A journal whose second line has a flipped bit."""
    journal = Journal(tmp_path / "journal.jsonl")
    notices(journal, "first", "second", "third")
    journal.close()
    journal.path.write_bytes(journal.path.read_bytes().replace(b'"second"', b'"second\x02'))
    return journal.path


def test_a_damaged_line_inside_is_an_error_that_names_it(damaged: Path) -> None:
    with pytest.raises(RunError, match=r"journal\.jsonl, line 2 is damaged: Invalid JSON: .*; the run's own command"):
        list(read(damaged))


def test_a_damaged_line_is_set_aside_and_the_offsets_of_all_others_stay(damaged: Path) -> None:
    before = damaged.read_bytes()
    assert mend(damaged) == 1
    assert messages(damaged) == ["first", "third"]
    assert damaged.read_bytes().index(b"third") == before.index(b"third")
    assert (damaged.parent / "journal.damaged.jsonl").read_bytes() == before.splitlines(keepends=True)[1]
    assert mend(damaged) == 0
    events, end = read_from(damaged, before.index(b"\n") + 1)
    assert ([event["message"] for event in events], end) == (["third"], len(before))


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1}, {"step": 1.5}, {"step": 10**30}, {"step": None}, {"time_unix_s": 1e300}, {"time_unix_s": "now"},
        {"level": "LOUD"}, {"message": ["a"]}, {"message": None}, {"kind": None}, {"kind": ["notice"]},
    ],
)  # fmt: skip
def test_a_field_that_is_not_as_a_run_writes_it_is_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    event = {"kind": "notice", "time_unix_s": 1.0, "step": 3, "level": "INFO", "message": "so", **change}
    (tmp_path / "journal.jsonl").write_text(json.dumps(event) + "\n")
    with pytest.raises(RunError, match=r"line 1 is damaged"):
        list(read(tmp_path / "journal.jsonl"))


def test_an_event_of_a_later_version_is_read_as_it_is(tmp_path: Path) -> None:
    event = {"kind": "forecast", "time_unix_s": 1.0, "step": 3, "anything": {"a": [1, None]}}
    (tmp_path / "journal.jsonl").write_text(json.dumps(event) + "\n")
    assert list(read(tmp_path / "journal.jsonl")) == [event]


def test_a_name_that_is_no_utf_8_is_readable(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    notices(journal, os.fsdecode(b"of\xff"))
    journal.close()
    assert messages(journal.path) == ["of?"]


def test_rewinding_moves_what_came_after_aside(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    notices(journal, "kept")
    offset = journal.sync()
    notices(journal, "abandoned", "abandoned too")
    journal.rewind(offset)
    notices(journal, "instead")
    journal.close()
    assert messages(journal.path) == ["kept", "instead"]
    assert messages(tmp_path / "journal.abandoned.jsonl") == ["abandoned", "abandoned too"]


def test_rewinding_keeps_lines_whole_whatever_the_offset(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    notices(journal, "kept", "abandoned")
    journal.rewind(journal.sync() - 3)
    journal.rewind(10**6)
    journal.close()
    assert messages(journal.path) == ["kept"]
    assert messages(tmp_path / "journal.abandoned.jsonl") == ["abandoned"]


def test_a_listener_that_fails_is_logged_and_not_told_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    calls: list[str] = []

    def fail(_: Event) -> None:
        calls.append("failing")
        raise OSError("the terminal is gone")

    journal.subscribe(fail)
    journal.subscribe(lambda event: calls.append(event.kind))
    with caplog.at_level(logging.ERROR):
        notices(journal, "first", "second")
    journal.close()
    assert calls == ["failing", "notice", "notice"]
    assert [record.message for record in caplog.records] == ["a listener of the journal failed and was removed"]
    assert messages(journal.path) == ["first", "second"]


def test_a_full_disk_is_a_clear_error_and_leaves_no_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    notices(journal, "first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.sync() + 20, hard))  # the next line fits in part
    try:
        with pytest.raises(RunError, match=r"cannot write .*journal\.jsonl: File too large"):
            notices(journal, "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    notices(journal, "third")
    journal.close()
    assert messages(journal.path) == ["first", "third"]


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    threads = [threading.Thread(target=notices, args=(journal, *[f"{n}" * 500] * 50)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert journal.sync() == journal.path.stat().st_size
    journal.close()
    assert sorted(messages(journal.path)) == sorted([f"{n}" * 500 for n in range(4)] * 50)


def test_the_tail_is_what_was_written_since_without_an_unfinished_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    notices(journal, "first")
    _, offset = read_from(journal.path, 0)
    notices(journal, "second")
    with journal.path.open("ab") as file:
        file.write(b'{"kind"')
    found, end = read_from(journal.path, offset)
    journal.close()
    assert [event["message"] for event in found] == ["second"]
    assert end == journal.path.stat().st_size - len(b'{"kind"')


def test_what_trackers_keep_of_runs_are_no_runs(tmp_path: Path) -> None:
    for name in ("b", "a"):
        files = tmp_path / "rates" / name / "wandb" / "offline-run-1" / "files"
        files.mkdir(parents=True)
        journal = tmp_path / "rates" / name / "journal.jsonl"
        journal.touch()
        (files / "journal.jsonl").symlink_to(journal)
    for store in ("mlartifacts", "mlruns"):
        copies = tmp_path / store / "1" / "artifacts"
        copies.mkdir(parents=True)
        (copies / "journal.jsonl").touch()
    assert run_folders(tmp_path) == [tmp_path / "rates" / "a", tmp_path / "rates" / "b"]
    assert run_folders(tmp_path / "rates" / "a") == [tmp_path / "rates" / "a"]
    assert run_folders(tmp_path / "rates" / "a" / "wandb" / "nothing") == []
