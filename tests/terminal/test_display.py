import dataclasses
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from esper.contracts.decisions import AdaptationDecision
from esper.contracts.events import (
    CheckpointSaved,
    Decided,
    EpochEnded,
    Event,
    Judged,
    Notice,
    RunEnded,
    RunStarted,
    StateChanged,
    StepLogged,
    SurgeryEnded,
)
from esper.contracts.progress import Progress
from esper.terminal import display as terminal_module
from esper.terminal.display import Terminal
from esper.terminal.final_table import growth_table
from esper.terminal.notebook import NotebookFigure
from esper.terminal.panel import Panel
from esper.tracking import Journal, read
from esper.tracking.history import GrownModule, History
from tests.conftest import tiny_config

CONFIG = dataclasses.asdict(
    tiny_config(
        model__name="resnet_small", dataset__name="digits", dataset__image_size=None, morphogenetic__policy="schedule"
    )
)
RESULT = {
    "test_loss": 0.25,
    "test_accuracy": 0.931,
    "val_loss": 0.3,
    "val_accuracy": 0.92,
    "num_parameters_before": 1000,
    "num_parameters": 1200,
    "num_macs_before": 50_000,
    "num_macs": 60_000,
    "num_grown": 2,
    "num_kept": 1,
    "epochs": 10,
    "peak_parameters": 1200,
    "train_macs": 90,
    "growth_macs": 10,
    "discarded_macs": 0,
    "forward_macs": 30,
    "backward_macs": 60,
    "scoring_macs": 10,
    "forking_macs": 0,
    "incubation_macs": 0,
    "judging_macs": 0,
    "seconds": 65.0,
}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of what is shown, however long that takes: a millisecond later whenever it is looked at."""
    now = [0.0]

    def look() -> float:
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr(terminal_module.time, "monotonic", look)
    return now


def started(*, step: int = 0, resumed_from: str | None = None) -> RunStarted:
    return RunStarted(
        step=step,
        run_name="run-1234abcd",
        experiment_name="demo",
        total_steps=100,
        total_epochs=10,
        steps_per_epoch=10,
        num_parameters=1000,
        num_macs=50_000,
        num_sites=4,
        device="cpu",
        config=CONFIG,
        environment={},
        resumed_from=resumed_from,
    )


def germinated(*, step: int, graft_id: int, site: str) -> list[Event]:
    surgery = SurgeryEnded(
        step=step,
        graft_id=graft_id,
        action="germinate",
        site=site,
        blueprint_id="conv3x3",
        committed=True,
        error=None,
        num_parameters_before=1000,
        num_parameters_after=1200,
        num_macs_before=50_000,
        num_macs_after=60_000,
        duration_s=0.1,
    )
    return [surgery, state(step=step, site=site, old="dormant", new="germinated", reason="asked")]


def state(*, step: int, site: str, old: str, new: str, reason: str) -> StateChanged:
    return StateChanged(step=step, epoch=step // 10, site=site, blueprint_id="conv3x3", old=old, new=new, reason=reason)


def judged(*, step: int, graft_id: int, site: str, kept: bool) -> list[Event]:
    verdict = Judged(
        step=step,
        epoch=step // 10,
        graft_id=graft_id,
        site=site,
        blueprint_id="conv3x3",
        loss_off=0.5,
        loss_on=0.4,
        gain=0.1032 if kept else 0.0023,
        lower_bound=0.0712 if kept else -0.0101,
        threshold=0.01,
        confidence=0.95,
        num_examples=90,
        kept=kept,
        added_parameters=200,
        added_macs=10_000,
        cost_macs=1,
        cost_s=0.1,
    )
    new, reason = ("fossilized", "kept") if kept else ("culled", "not shown to help")
    return [verdict, state(step=step, site=site, old="holding", new=new, reason=reason)]


def epoch_ended(step: int) -> EpochEnded:
    return EpochEnded(
        step=step,
        epoch=step // 10,
        train_loss=0.5,
        train_metrics={"accuracy": 0.8},
        val_loss=0.6,
        val_metrics={"accuracy": 0.75},
        learning_rate=0.05,
        adaptations_applied=0,
        epoch_time=1.0,
    )


def logged(step: int) -> StepLogged:
    return StepLogged(
        step=step,
        epoch=step // 10,
        loss=0.7,
        metrics={"accuracy": 0.7},
        learning_rate=0.05,
        grad_norm=1.0,
        images_per_s=4000.0,
        memory_bytes=312_000_000,
    )


def whole_run() -> list[Event]:
    return [
        started(),
        epoch_ended(10),
        *germinated(step=10, graft_id=1, site="layer1.0:beside"),
        *judged(step=30, graft_id=1, site="layer1.0:beside", kept=True),
        *germinated(step=40, graft_id=2, site="layer2.0:after"),
        *judged(step=60, graft_id=2, site="layer2.0:after", kept=False),
        RunEnded(step=100, status="finished", reason="", result=RESULT),
    ]


def shown(*events: Event, level: str = "INFO", width: int = 100, is_terminal: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=is_terminal)
    with Terminal(level=level, console=console) as terminal:
        for event in events:
            terminal.show(event)
    return stream.getvalue()


@pytest.mark.parametrize("noun", ["images", "rows"])
def test_speed_is_in_what_the_data_are(noun: str) -> None:
    assert f"4,000 {noun}/s" in shown(
        dataclasses.replace(started(), noun=noun), logged(10), width=140, is_terminal=True
    )


def test_without_a_terminal_there_is_a_line_for_each_epoch_and_growth_event_and_no_escape_code():
    text = shown(*whole_run())
    assert "\x1b" not in text
    assert [line.split()[0] for line in text.split("demo/run-1234abcd finished")[0].splitlines() if line] == [
        *("run", "host", "training", "growth"),
        *("epoch", "germinated", "judged", "kept", "germinated", "judged", "culled"),
    ]


@pytest.mark.parametrize(
    ("settings", "max_epochs", "why"),
    [
        ({"schedule_by": "compute"}, 8, ": as much compute as 8 epochs of the network it ends with"),
        ({"schedule_by": "compute"}, 1, ": as much compute as 1 epoch of the network it ends with"),
        ({"schedule_by": "compute"}, 10, ""),  # nothing will grow
        ({"schedule_by": "steps"}, 10, ""),
        ({"schedule_by": "compute", "enable_tamiyo": False}, 8, ""),
    ],
)
def test_more_epochs_than_were_asked_for_are_explained(settings: dict[str, Any], max_epochs: int, why: str) -> None:
    growth = CONFIG["morphogenetic"] | {"policy": "stack"} | settings
    optimization = CONFIG["optimization"] | {"max_epochs": max_epochs}
    config = CONFIG | {"morphogenetic": growth, "optimization": optimization}
    lines = shown(dataclasses.replace(started(), config=config), width=140).splitlines()
    (line,) = [line.rstrip() for line in lines if line.startswith("training")]
    assert line == f"training    10 epochs, 100 steps on cpu{why}"


def test_a_decision_that_was_missed_is_a_warning_and_one_for_nothing_is_not_shown():
    nothing = dataclasses.asdict(AdaptationDecision(should_adapt=False))
    outcomes = ("missed: the shared Tamiyo gave no answer within 5 s", "no change was requested")
    decisions = [Decided(step=10, epoch=1, decision=nothing, applied=False, outcome=outcome) for outcome in outcomes]
    text = shown(*decisions, level="WARNING")
    assert [line.rstrip() for line in text.splitlines() if line] == [
        "missed      the shared Tamiyo gave no answer within 5 s (step 10)"
    ]
    assert "\x1b[1;33mmissed" in shown(*decisions, level="WARNING", is_terminal=True)


def test_the_result_shows_what_grew_and_what_the_judge_measured():
    text = shown(*whole_run())
    assert "grew 2 modules, kept 1" in text
    assert "93.1 %" in text
    assert "1,000 → 1,200   +20.0 %" in text
    assert "training 90.0 %, growth 10.0 %" in text
    rows = [line.split() for line in text.splitlines() if line.split()[-1:] in (["kept"], ["culled"])]
    assert rows == [
        ["1", "conv3x3", "layer1.0:beside", "+200", "+10,000", "0.1032", "0.0712", "kept"],
        ["4", "conv3x3", "layer2.0:after", "+200", "+10,000", "0.0023", "-0.0101", "culled"],
    ]


@pytest.mark.parametrize("width", [80, 100])
def test_modules_that_no_judge_decides_on_have_no_gains_in_the_table(width: int):
    kept = state(step=30, site="layer1.0:beside", old="holding", new="fossilized", reason="kept without a judge")
    text = shown(
        started(), *germinated(step=10, graft_id=1, site="layer1.0:beside"), kept, whole_run()[-1], width=width
    )
    table = text.split("MACs spent")[1]
    assert "kept" in table
    assert "gain" not in table
    assert "lower bound" not in table
    assert "–" not in table


@pytest.mark.parametrize("width", [100, 70])
def test_long_names_of_sites_are_shown_to_their_ends_which_tell_them_apart(width: int):
    sites = [f"encoder.layers.encoder_layer_{number}.some_part_of_it:after" for number in range(3)]
    modules = [
        GrownModule(
            graft_id=1, site=site, blueprint_id="spatial_self_attention", step=1, epoch=1, added_parameters=1234,
            added_macs=12_345, state="fossilized", judgement={"gain": 0.01, "lower_bound": 0.001},
        )
        for site in sites
    ]  # fmt: skip
    console = Console(file=io.StringIO(), width=width)
    console.print(growth_table(modules, is_narrow=width < 90))
    assert isinstance(console.file, io.StringIO)
    assert "…" not in console.file.getvalue()
    assert console.file.getvalue().count("kept") == len(sites)


def test_a_journal_replays_to_the_same_result_as_the_run_itself_printed(tmp_path: Path):
    journal = Journal(tmp_path / "journal.jsonl")
    for event in whole_run():
        journal.write(event)
    journal.close()
    stream = io.StringIO()
    with Terminal(level="INFO", console=Console(file=stream, width=100)) as terminal:
        terminal.replay(read(journal.path))
    assert stream.getvalue().strip() == shown(*whole_run(), level="ERROR").strip()


def test_a_resumed_run_counts_what_grew_before_it_was_interrupted(tmp_path: Path):
    journal = Journal(tmp_path / "journal.jsonl")
    *before, rest = whole_run()
    for event in (*before, started(step=70, resumed_from="checkpoints/step-70")):
        journal.write(event)
    stream = io.StringIO()
    with Terminal(level="INFO", console=Console(file=stream, width=100)) as terminal:
        terminal.show(started(step=70, resumed_from="checkpoints/step-70"))
        terminal.replay(read(journal.path))
        terminal.show(rest)
    journal.close()
    assert "resumed     at step 70, from checkpoints/step-70" in stream.getvalue()
    assert "grew 2 modules, kept 1" in stream.getvalue()


def test_warning_hides_what_is_merely_informative_but_not_the_result():
    notice = Notice(step=50, level="WARNING", message="the tracker does not answer")
    *before, rest = whole_run()
    text = shown(*before, notice, rest, level="WARNING")
    assert text.startswith("warning     the tracker does not answer\n\ndemo/run-1234abcd finished")


def test_an_interrupted_run_says_where_it_stopped_and_how_to_go_on():
    saved = CheckpointSaved(step=41, epoch=4, path="checkpoints/step-00000040", is_best=False)  # written meanwhile
    best = CheckpointSaved(step=42, epoch=4, path="checkpoints/best-42", is_best=True)
    end = RunEnded(step=45, status="interrupted", reason="Ctrl-C", result=None)
    assert "interrupted (Ctrl-C) at step 45 of 100; the same command resumes from step 40" in shown(
        started(), saved, best, end
    )
    assert "no checkpoint yet" in shown(started(), end)


@pytest.mark.parametrize("width", [60, 200])
def test_the_live_display_fits_the_terminal_and_leaves_the_cursor_visible(width: int):
    text = shown(*whole_run()[:-1], logged(65), width=width, is_terminal=True)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "\x1b[?25l" in text


def test_the_panel_shows_the_stage_of_every_seed():
    stream = io.StringIO()
    console = Console(file=stream, width=60, force_terminal=True)
    with Terminal(level="INFO", console=console) as terminal:
        for event in (*whole_run()[:-1], logged(65)):
            terminal.show(event)
        with console.capture() as capture:
            console.print(terminal._panel.render())
    lines = capture.get().splitlines()
    assert any("layer1.0:beside" in line and "kept" in line for line in lines)
    assert any("layer2.0:after" in line and "culled" in line for line in lines)
    assert any("step 65/100" in line for line in lines)


def panel(*, width: int = 80, events: Iterable[Event] = (), progress: Progress | None = None) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    with Terminal(level="INFO", console=console) as terminal:
        for event in events:
            terminal.show(event)
        if progress is not None:
            terminal.progress(progress)
        drawn = Console(file=io.StringIO(), width=width)
        with drawn.capture() as capture:
            drawn.print(terminal._panel.render())
    return capture.get().splitlines()


def test_before_the_run_has_started_the_panel_says_what_is_done():
    (line,) = panel(progress=Progress(doing="reading the data"))
    assert line.split()[1:] == ["reading", "the", "data", "0:00"]


@pytest.mark.parametrize("width", [80, 120])
def test_the_first_step_brings_a_loss_and_the_time_left(width: int):
    first = Progress(doing="training", step=1, total_steps=100, loss=2.3026, metrics={"accuracy": 0.125})
    lines = panel(width=width, events=[started()], progress=first)
    assert any("step 1/100" in line and "– left" not in line for line in lines)
    assert any("loss 2.3026" in line and "12.5 %" in line and "– images" not in line for line in lines)
    assert max(map(len, lines)) <= width


def test_the_panel_shows_the_best_epoch_so_far():
    worse = dataclasses.replace(epoch_ended(30), val_loss=0.7)
    diverged = dataclasses.replace(epoch_ended(10), val_loss=math.nan)
    lines = panel(events=[started(), diverged, dataclasses.replace(epoch_ended(20), val_loss=0.4), worse])
    assert any(line.split()[:3] == ["best", "loss", "0.4000"] and "epoch 2" in line for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_every_epoch_stays_in_the_scrollback_of_a_terminal_in_one_line(width: int):
    text = Text.from_ansi(shown(started(), epoch_ended(10), epoch_ended(20), width=width, is_terminal=True)).plain
    lines = [line.rstrip() for line in text.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1", "2"]
    assert [line.endswith("best") for line in lines] == [True, False]
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [40, 80])
def test_a_path_in_a_message_is_never_cut(width: int):
    path = "/data/experiments of/" + 12 * "folder/" + "checkpoints/step-00000070"
    text = shown(started(step=70, resumed_from=path), width=width, is_terminal=True)
    assert path in Text.from_ansi(text).plain


def test_a_figure_of_a_notebook_names_the_run_as_text():
    figure = NotebookFigure(terminal := Panel(History()))
    event = {"kind": "run_started", **dataclasses.asdict(started()), "experiment_name": "<b>&"}
    terminal.history.add(event)
    assert "&lt;b&gt;&amp;" in figure._html()


def test_a_long_epoch_gets_a_line_now_and_then(clock: list[float]):
    stream = io.StringIO()
    with Terminal(level="INFO", console=Console(file=stream, width=100)) as terminal:
        terminal.show(started())
        clock[0] += terminal_module._FIRST_PROGRESS_S - 0.1
        terminal.show(logged(4))
        assert "train loss" not in stream.getvalue()
        clock[0] += 0.1
        terminal.show(logged(5))
        assert "step 5      of 100   train loss 0.7000" in stream.getvalue()


def test_paths_and_commands_are_printed_whole_on_a_narrow_terminal():
    stream = io.StringIO()
    command = "mlflow ui --backend-store-uri sqlite:////a/rather/long/path/to/outputs/mlflow.db"
    with Terminal(level="INFO", console=Console(file=stream, width=60)) as terminal:
        terminal.files({"mlflow": command})
        for event in whole_run():
            terminal.show(event)
    assert command in stream.getvalue()
