"""How a run ends: by signals before and during training, and because something hangs."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from esper import hanging, stopping
from esper.callbacks import exit_on_error
from tests.data.photos import write_photos
from tests.forked import ESPER_TRAIN, ROOT, ForkedPython, run, suspend
from tests.tolaria.processes import LONG, await_checkpoint, start_step


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., ForkedPython]:
    """Starts `esper-train` in a folder of its own."""
    return functools.partial(ForkedPython, ESPER_TRAIN, cwd=tmp_path)


def wait_until(is_so: Callable[[], object]) -> None:
    until = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("train.collect_failures", signal.SIGTERM),  # its first line
        ("train.from_hydra", signal.SIGHUP),  # Hydra has made the folder
        ("tolaria.run_folder.RunFolder.acquire", signal.SIGHUP),
        pytest.param("terminal.display.Terminal.__init__", signal.SIGINT, marks=pytest.mark.long),
        pytest.param("launch.run.Console", signal.SIGUSR1, marks=pytest.mark.long),  # after train.log is made
        pytest.param("tolaria.run.build_optimizer", signal.SIGTERM, marks=pytest.mark.long),  # in the training's thread
    ],
)
def test_a_signal_before_training_ends_the_command_and_leaves_nothing_behind(
    tmp_path: Path, place: str, number: signal.Signals
):
    """The command sends itself a signal as it leaves that function for the first time."""
    kill_at = f"""
import os, pkgutil, signal, sys, time
from esper import stopping
from esper.train import main
module, owner, name = "esper.{place}".rsplit(".", 2)
owner = getattr(pkgutil.resolve_name(module), owner, None) or pkgutil.resolve_name(module + "." + owner)
original = getattr(owner, name)
def stopped(*arguments, **keywords):
    result = original(*arguments, **keywords)
    os.kill(os.getpid(), {int(number)})
    while stopping.requested() is None:  # in a thread: the main thread handles signals
        time.sleep(0.01)
    return result
setattr(owner, name, stopped)
sys.argv[0] = "esper-train"
main()
"""
    chdir = f"hydra.job.chdir={'true' if number == signal.SIGHUP else 'false'}"
    arguments = ("experiment=debug", "logging.log_dir=logs", chdir)
    if place == "train.collect_failures":  # nothing large is imported yet
        done = subprocess.run(
            [sys.executable, "-c", kill_at, *arguments],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    else:
        done = run(kill_at, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (128 + number, "")
    assert "validation" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_an_ignored_signal_stays_ignored_and_all_handlers_are_restored():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    for number in (signal.SIGHUP, signal.SIGUSR1):
        handlers[number] = signal.signal(number, signal.SIG_IGN)
    try:
        with stopping.handled():
            assert signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
            stopping.check()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert {number: signal.getsignal(number) for number in handlers} == {
            **handlers, signal.SIGHUP: signal.SIG_IGN, signal.SIGUSR1: signal.SIG_IGN
        }  # fmt: skip
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_the_first_signal_ends_work_before_training_and_is_told_to_threads():
    with stopping.handled():
        with pytest.raises(stopping.Stopped) as ended:
            signal.raise_signal(signal.SIGHUP)
        assert ended.value.code == 129
        signal.raise_signal(signal.SIGTERM)  # SLURM sends several: the first one is being obeyed
        with pytest.raises(stopping.Stopped):
            stopping.check()
    stopping.check()


def half_set_up() -> None:
    """Fails as OmegaConf does when a signal leaves it in the middle."""
    with exit_on_error():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            raise AttributeError("half set up")


def test_an_error_in_what_a_signal_interrupts_is_no_bad_input():
    with stopping.handled(), pytest.raises(stopping.Stopped, match="143"):
        half_set_up()


def test_training_goes_on_when_the_reader_of_its_output_goes(tmp_path: Path, start: Callable[..., ForkedPython]):
    process = start("experiment=debug", "logging.log_level=INFO", "tracking=none", "morphogenetic=off")
    assert process.stdout is not None
    assert process.stdout.readline()  # as `| head -1`
    process.stdout.close()
    process.stdout = None
    assert (process.wait(), process.stderr.read() if process.stderr else None) == (0, "")
    assert status(tmp_path)[0] == "finished"


@pytest.mark.parametrize("closed", [">&- 2>&- <&-", "| true"])
def test_a_small_command_ends_quietly_where_nobody_reads(tmp_path: Path, closed: str):
    script = "import sys; from esper.cli import main; main(['version'])"
    line = f"{sys.executable} -c {shlex.quote(script)} {closed}; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_training_goes_on_when_the_disk_of_its_output_is_full(tmp_path: Path):
    script = f"import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); {ESPER_TRAIN}"
    settings = ("experiment=debug", "logging.log_level=INFO", "tracking=none", "morphogenetic=off")
    done = run(script, *settings, cwd=tmp_path)
    lost = "warning: cannot write standard output: No space left on device; lines are lost\n"
    assert (done.returncode, done.stderr, status(tmp_path)[0]) == (0, lost, "finished")


def test_a_table_that_a_full_disk_cut_is_no_success(tmp_path: Path):
    script = "import sys; from esper.cli import main; main(['version'])"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=full,
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    lost = "warning: cannot write standard output: No space left on device; lines are lost\n"
    assert (done.returncode, done.stderr) == (1, lost)


IN_A_LOOP = """
import asyncio
from esper import fit

async def cell():
    outcome = fit("experiment=debug", "optimization.max_epochs=100000", "tracking=none", "morphogenetic=off")
    print("exit code", outcome.exit_code)
    await asyncio.sleep(0)
    return "still here"

print(asyncio.run(cell()))
"""


@pytest.mark.long
def test_the_first_ctrl_c_ends_fit_inside_a_running_loop(tmp_path: Path):
    with ForkedPython(IN_A_LOOP, cwd=tmp_path) as process:
        wait_until(lambda: any('"epoch"' in path.read_text() for path in tmp_path.glob("outputs/*/*/journal.jsonl")))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.endswith("exit code 130\nstill here\n")
    assert status(tmp_path) == ("interrupted", "Ctrl-C")
    assert list(tmp_path.glob("outputs/*/*/checkpoints/step-*"))


def status(folder: Path) -> tuple[str, str]:
    (path,) = folder.glob("**/status.json")
    content = json.loads(path.read_text())
    return content["status"], content["reason"]


def train_with_a_stopped_decoder(
    tmp_path: Path, start: Callable[..., ForkedPython], *overrides: str
) -> tuple[ForkedPython, psutil.Process]:
    """A run that streams images, and whose only decoder is stopped once it trains."""
    photos = write_photos(tmp_path / "photos")
    process = start(
        *("experiment=debug", "dataset=imagefolder", f"dataset.data_dir={photos}", "dataset.storage=stream"),
        *("dataset.image_size=32", "dataset.batch_size=4", "dataset.num_workers=1", "dataset.val_split=0.4"),
        *("dataset.num_examples=null", "optimization.max_epochs=100000", "debug_mode=false", "morphogenetic=off"),
        *overrides,
    )
    wait_until(lambda: any('"epoch"' in path.read_text() for path in tmp_path.glob("outputs/*/*/journal.jsonl")))
    workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    (decoder,) = workers
    decoder.suspend()
    return process, decoder


def first_line(err: str) -> str:
    """What Esper printed; Python's resource tracker adds that it cleaned up."""
    line, _, rest = err.partition("\n")
    assert "error:" not in rest
    return line


@pytest.mark.long
def test_a_decoder_that_hangs_ends_the_run_with_stacks_in_the_log(tmp_path: Path, start: Callable[..., ForkedPython]):
    process, decoder = train_with_a_stopped_decoder(tmp_path, start, "dataset.timeout_s=1")
    _, err = process.communicate()  # beyond the time that the decoder took to start
    assert process.returncode == 1
    line = first_line(err)
    assert re.match(r"error: decoding \S+.JPEG and up to 31 other files takes longer than \d+ s; see dataset", line)
    log = Path(line.rpartition(": ")[2]).read_text()
    assert "esper-trainer" in log or "pool.py" in log
    assert status(tmp_path)[0] == "failed"
    wait_until(lambda: has_ended(decoder))


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


LAST_WORDS = """
import os, signal, time
from esper import hanging
hanging._LAST_WORDS_S = 1.5

def last_words(status, why):
    time.sleep(0.05)  # the other thread waits now
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.05)
    print(status, why, flush=True)
    return True

with hanging.watched(last_words):
    hanging.end_process("it hangs")
"""


def test_a_process_that_hangs_has_time_for_last_words_though_it_is_suspended_meanwhile(tmp_path: Path):
    process = ForkedPython(LAST_WORDS, cwd=tmp_path)
    assert os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    time.sleep(1.6)
    process.send_signal(signal.SIGCONT)
    assert process.communicate() == ("failed it hangs\n", "error: it hangs\n")


def only_waits(pid: int) -> bool:
    """Whether no thread of a process runs, waits for a CPU or waits for a disk, for half a second."""
    for _ in range(10):
        time.sleep(0.05)
        for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):  # the thread has ended
                if stat.read_text().rpartition(") ")[2][0] != "S":
                    return False
    return True


@pytest.mark.long
def test_a_signal_ends_a_run_that_hangs(tmp_path: Path, start: Callable[..., ForkedPython]):
    assert hanging._POLL_S + hanging._STOP_S + hanging._LAST_WORDS_S <= 10  # seconds
    process, _ = train_with_a_stopped_decoder(tmp_path, start)
    wait_until(lambda: only_waits(process.pid))  # what was decoded ahead is used up
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143
    line = first_line(err)
    # 7 s, or twice the longest pause before.
    assert re.match(r"error: SIGTERM, but no progress for \d+ s, so the run ended without saving; stacks of all", line)
    assert status(tmp_path) == ("interrupted", line.removeprefix("error: ").partition("; stacks")[0])


@pytest.mark.long
def test_a_rank_that_hangs_ends_the_others_after_the_timeout(tmp_path: Path):
    run_dir = tmp_path / "run"
    processes = start_step(
        *[(*LONG, "optimization.max_epochs=100000", f"hydra.run.dir={run_dir}", "ranks.timeout_s=6")] * 2
    )
    await_checkpoint(run_dir)
    suspend(processes[1])
    _, err = processes[0].communicate()
    assert processes[0].returncode == 1
    assert err.count("\n") == 1, err
    assert "ranks.timeout_s=6: another rank of this run has not answered for 6 s; start the same command" in err
    assert status(tmp_path)[0] == "failed"
