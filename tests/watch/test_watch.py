"""`esper watch`: what it serves, to whom, and the page in Chromium."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.cli import main
from esper.contracts.events import EpochEnded, StateChanged, StepLogged, Validated
from esper.tracking import Journal
from esper.watch.server import WatchServer
from tests.browser import dom, needs_chromium
from tests.forked import ESPER, ForkedPython
from tests.report.test_comparison import write_run

_HOSTILE = "<img src=x onerror=document.title='stolen'>"


def write_more(run_dir: Path, *steps: int) -> None:
    """Continue a run: a step, an epoch, and a seed that trains."""
    journal = Journal(run_dir / "journal.jsonl")
    for step in steps:
        metrics = {"accuracy": step / 100}
        common: dict[str, Any] = {"step": step, "epoch": step // 6}
        journal.write(
            StepLogged(**common, loss=1 / step, metrics=metrics, learning_rate=0.1, grad_norm=1.0, images_per_s=9.0,
                       memory_bytes=5_000_000_000)
        )  # fmt: skip
        journal.write(
            EpochEnded(**common, train_loss=1 / step, train_metrics=metrics, val_loss=2 / step, val_metrics=metrics,
                       learning_rate=0.1, adaptations_applied=0, epoch_time=1.0)
        )  # fmt: skip
        stages = {"old": "germinated", "new": "training", "reason": "its weights are trained"}
        journal.write(StateChanged(**common, site="layer1.0:after", blueprint_id=_HOSTILE, **stages))
    journal.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name)
    lines = (tmp_path / "runs" / "a" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "runs" / "a" / "journal.jsonl").write_bytes(b"".join(lines[:-1]))  # it has not ended
    return tmp_path / "runs"


@pytest.fixture
def server(folder: Path) -> Iterator[WatchServer]:
    with WatchServer(folder, port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: WatchServer, path: str, *, host: str | None = None, method: str = "GET"
) -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


def get(server: WatchServer, path: str) -> dict[str, Any]:
    answer, text = ask(server, f"/{server.token}/{path}")
    assert answer.status == 200
    content: dict[str, Any] = json.loads(text)
    return content


def test_only_this_machine_with_the_token_and_by_its_own_name_is_answered(server: WatchServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    for path in ("/", "/x/", "/x/runs", f"/{server.token[:-1]}/", f"/{server.token}/../runs", "//", "/%00"):
        answer, text = ask(server, path)
        assert answer.status == 404
        assert server.token not in text
    own = f"/{server.token}/runs"
    for host, status in (
        ("localhost:9", 200),
        ("127.0.0.1", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("localhost@evil.example", 403),
    ):
        assert ask(server, own, host=host)[0].status == status
    for method in ("POST", "PUT", "DELETE"):
        assert ask(server, own, method=method)[0].status == 501
    for path in ("run/9", "run/-1", "run/a", "run/%C2%B2", "report/../x", "run/0/x", "watch.py", "run/" + "9" * 99):
        assert ask(server, f"/{server.token}/{path}")[0].status == 404


def test_no_page_of_another_origin_may_read_or_frame_it(server: WatchServer) -> None:
    answer, _ = ask(server, f"/{server.token}/")
    policy = answer.getheader("Content-Security-Policy") or ""
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src 'self';" in policy
    assert answer.getheader("Access-Control-Allow-Origin") is None
    assert answer.getheader("Referrer-Policy") == "no-referrer"


def test_nothing_below_the_folder_is_written(server: WatchServer, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for path in ("", "watch.js", "plot.js", "style.css", "runs", "run/0", "report/0"):
        assert ask(server, f"/{server.token}/{path}")[0].status == 200
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_what_was_written_since_is_told_and_nothing_else(server: WatchServer, folder: Path) -> None:
    server.runs.refresh_s = 0.0
    first = get(server, "runs?since=0")
    assert {run["name"]: run["status"] for run in first["runs"]} == {"a": "running", "b": "finished"}
    assert get(server, f"runs?since={first['version']}")["runs"] == []
    write_more(folder / "a", 18, 24)
    then = get(server, f"runs?since={first['version']}")
    assert [(run["name"], run["step"], run["memory"]) for run in then["runs"]] == [("a", 24, "5.0 GB")]
    assert get(server, f"runs?since={then['version']}")["runs"] == []
    number = then["runs"][0]["number"]
    one = get(server, f"run/{number}?since=0")
    assert [figure["title"] for figure in one["figures"]][:2] == ["Loss", "Accuracy"]
    assert one["seeds"] == [{"site": "layer1.0:after", "stage": "training", "blueprint": _HOSTILE, "epoch": 4}]
    assert list(get(server, f"run/{number}?since={one['version']}")) == ["version"]


def test_a_run_that_finished_before_its_last_planned_epoch_is_at_its_end(server: WatchServer, folder: Path) -> None:
    write_more(folder / "b", 12)  # of 18 steps, 3 epochs
    runs = {run["name"]: run for run in get(server, "runs")["runs"]}
    assert [runs["a"][name] for name in ("status", "step", "total_steps", "total_epochs")] == ["running", 18, 18, 3]
    done = [runs["b"][name] for name in ("status", "step", "total_steps", "epoch", "total_epochs")]
    assert done == ["finished", 12, 12, 2, 2]


def test_the_last_step_of_a_run_is_told_also_if_it_was_not_logged(server: WatchServer, folder: Path) -> None:
    journal = Journal(folder / "a" / "journal.jsonl")
    logged = StepLogged(step=20, epoch=3, loss=1.0, metrics={}, learning_rate=0.1, grad_norm=1.0, images_per_s=9.0,
                        memory_bytes=5_000_000_000)  # fmt: skip
    journal.write(logged)
    journal.write(Validated(step=24, epoch=4, val_loss=1.0, val_metrics={"accuracy": 0.5}))
    journal.close()
    runs = {run["name"]: run for run in get(server, "runs")["runs"]}
    assert (runs["a"]["step"], runs["a"]["memory"]) == (24, "5.0 GB")


def test_a_journal_that_is_rewound_is_read_anew(server: WatchServer, folder: Path) -> None:
    server.runs.refresh_s = 0.0
    path = folder / "a" / "journal.jsonl"
    size = path.stat().st_size
    get(server, "runs")
    write_more(folder / "a", 24, 30)
    assert get(server, "run/0")["events"][0]["text"].startswith("layer1.0:after")
    with path.open("r+b") as file:
        file.truncate(size)
    write_more(folder / "a", 18, 24, 36)  # longer than it was
    losses = get(server, "run/0")["figures"][0]["data"]["series"][0]
    assert losses["x"] == [18, 24, 36]
    assert get(server, "runs")["runs"][0]["step"] == 36


def test_damage_and_removal_are_no_end(server: WatchServer, folder: Path) -> None:
    server.runs.refresh_s = 0.0
    with (folder / "a" / "journal.jsonl").open("ab") as file:
        file.write(b'{"kind": "epoch"}\nnonsense\n')
    write_more(folder / "a", 24)
    shutil.rmtree(folder / "b")
    found = {run["name"]: (run["status"], run["step"]) for run in get(server, "runs")["runs"]}
    assert found["a"] == ("running", 24)
    (folder / "a" / "journal.jsonl").unlink()
    assert {run["name"]: run["status"] for run in get(server, "runs")["runs"]}["a"] == "removed"


@needs_chromium
def test_the_page_shows_runs_seeds_and_curves_and_runs_nothing_from_disk(
    server: WatchServer, folder: Path, tmp_path: Path
) -> None:
    (folder / "a").rename(folder / _HOSTILE.replace("/", ""))
    write_more(folder / _HOSTILE, 18, 24)
    shown = dom(server.address, tmp_path / "chrome", wait_ms=3000)
    assert "<title>esper watch</title>" in shown
    assert "<img" not in shown
    assert shown.count("&lt;img src=x onerror") >= 3  # list, heading, seed
    assert "1 running, 1 finished" in shown
    assert shown.count('<g stroke="#') >= 6  # curves of six plots
    assert re.search(r'<span class="tag training"[^>]*>training</span>', shown)


@needs_chromium
def test_two_hundred_runs_are_listed(server: WatchServer, folder: Path, tmp_path: Path) -> None:
    for number in range(198):
        shutil.copytree(folder / "b", folder / f"copy-{number}")
    shown = dom(server.address, tmp_path / "chrome", wait_ms=3000)
    assert len(re.findall(r"<tr tabindex", shown)) == 200
    assert "1 running, 199 finished" in shown


def test_ctrl_c_ends_it_without_a_word(folder: Path) -> None:
    process = ForkedPython(ESPER, "watch", str(folder), cwd=folder)
    assert process.stdout is not None
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/\n", process.stdout.readline())
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["absent"], "absent is no folder"), ([".", "--port", "PORT"], "Address already in use"), (["a"], "is no folder")],
)
def test_what_cannot_be_watched_is_one_line_and_exit_code_2(
    server: WatchServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").touch()
    with pytest.raises(SystemExit) as ended:
        main(["watch", *(str(server.server_port) if word == "PORT" else word for word in arguments)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
