"""Members that train at the same time in one process: here on a CPU, where only Esper's tests may do so."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from esper import stopping, turns
from esper.configs import ComparisonConfig, DatasetConfig, TolariaConfig
from esper.data.sharing import loaded, on_device
from esper.errors import ConfigError, MemoryLimitError
from esper.report.comparison import compare, write
from esper.report.packs import sentences, shared_work
from esper.report.run_record import read_run
from esper.report.runs import from_folders
from esper.sweep.launchers import queue_of
from esper.sweep.manifest import Job, Member
from esper.sweep.member_state import log_file, member_states
from esper.sweep.pack import PackJob
from esper.sweep.queues import local
from esper.tolaria.step import TrainStep
from tests.conftest import tiny_config
from tests.data.photos import write_photos
from tests.sweep.packing import DROPPED, alone, member, weights
from tests.tolaria.checkpoints.test_resume import assert_same

GROWING = {"optimization__max_epochs": 2}
STATIC = {"morphogenetic__enable_tamiyo": False, "optimization__max_epochs": 2}


@pytest.fixture(autouse=True)
def _process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    cwd, interval = Path.cwd(), sys.getswitchinterval()
    yield
    os.chdir(cwd)
    sys.setswitchinterval(interval)


def packed(*members: Member, at_once: int | None = None) -> None:
    PackJob([one.folder for one in members], at_once=at_once)()


def outcomes(*members: Member) -> list[str]:
    return [one.outcome()["status"] for one in members]


def journal(one: Member) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (one.run_dir / "journal.jsonl").read_text().splitlines()]


def test_runs_that_draw_random_numbers_compute_what_each_computes_alone(tmp_path: Path) -> None:
    drops = [member(tmp_path / "beside", f"seed-{seed}", **DROPPED, **STATIC, rng_seed=seed) for seed in (0, 1)]
    packed(*drops, at_once=2)
    assert outcomes(*drops) == ["finished", "finished"]
    reference = member(tmp_path / "alone", "seed-1", **DROPPED, **STATIC, rng_seed=1)
    alone(reference)
    assert_same(weights(drops[1]), weights(reference))
    assert_pages_tell_of_the_pack(drops, reference)


def assert_pages_tell_of_the_pack(beside: list[Member], other: Member) -> None:
    """The comparison gives throughput and memory of all, and each page says whose its own are."""
    report = compare(from_folders([one.run_dir for one in beside]))
    (sentence,) = report.packs
    assert re.match(rf"2 runs shared one process \(.*, {os.getpid()}\): together [\d,]+ images/s from ", sentence)
    assert re.search(r"and at most [\d.]+ [MG]B of memory\.$", sentence)
    assert_another_process_is_told_apart(beside)
    page = other.sweep_dir / "comparison.html"
    write(report, page)
    assert sentence in page.read_text()
    titles = [("Throughput, of this run", "Peak memory, of all runs on the GPU"), ("Throughput", "Peak memory")]
    for one, expected in zip((beside[0], other), titles, strict=True):
        headings = re.findall(r"<h3>(.*?)</h3>", (one.run_dir / "report.html").read_text())
        assert {*expected} <= {*headings}


def assert_another_process_is_told_apart(beside: list[Member]) -> None:
    """In a container with the same name, whose process has the same number."""
    works = [shared_work(read_run(one.run_dir)) for one in beside]
    assert works[1] is not None
    program = "from esper import turns; from esper.tracking.environment import environment\n"
    program += "with turns.Turns().run(): print(environment()['shared_process'])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    host, _, token = done.stdout.strip().split(", ")
    other = dataclasses.replace(works[1], process=f"{host}, {os.getpid()}, {token}")
    assert len(sentences(works)) == 1
    assert sentences([works[0], other]) == []


class CudaGenerator:
    """What `esper.turns` uses of CUDA's generators, which do not exist here: a state that can be exchanged."""

    def __init__(self, drawn: list[int]) -> None:
        self.drawn = drawn

    def clone_state(self) -> CudaGenerator:
        return CudaGenerator(list(self.drawn))

    def graphsafe_set_state(self, other: CudaGenerator) -> None:
        self.drawn = other.drawn


def test_each_run_has_random_states_on_the_device_from_its_first_line_on(monkeypatch: pytest.MonkeyPatch) -> None:
    default = CudaGenerator([])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "default_generators", (default,))
    group, found = turns.Turns(), {}

    def run(seed: int) -> None:
        with group.run():
            default.drawn.append(seed)  # before the first turn ends
            state = default.drawn
            with turns.paused():
                pass
            default.drawn.append(0)
            assert default.drawn is state  # which a graph that was captured before reads
            found[seed] = list(default.drawn)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {1: [1, 0], 2: [2, 0], 3: [3, 0]}
    assert default.drawn == []


def test_members_find_their_files_where_each_was_launched_and_those_of_a_lost_folder_fail(tmp_path: Path) -> None:
    photos = DatasetConfig(name="imagefolder", data_dir="photos", image_size=8, batch_size=8)
    data: dict[str, Any] = {**STATIC, "dataset": photos}
    members = []
    for name in ("here", "there", "lost"):
        write_photos(tmp_path / name / "photos", num_train=24, num_val=6)
        members.append(member(tmp_path / "sweep", name, cwd=tmp_path / name, **data))
    shutil.rmtree(tmp_path / "lost")
    packed(*members, at_once=2)
    assert outcomes(*members) == ["finished", "finished", "failed"]
    assert "No such file or directory" in members[2].outcome()["reason"]


def test_what_was_read_is_kept_as_long_as_a_run_that_shares_it_trains() -> None:
    group, num_read = turns.Turns(), 0

    def load(_: DatasetConfig, __: Path | None) -> threading.Event:
        nonlocal num_read
        num_read += 1
        return threading.Event()

    def run(cache_dir: Path) -> None:
        with group.run():
            read = loaded(load, DatasetConfig(), cache_dir)
            assert loaded(load, DatasetConfig(), cache_dir) is read
            kept.append(weakref.ref(read))
            del read
            while len(kept) == 1:  # the other one shares it
                turns.pass_on()

    kept = list[Any]()
    # Runs whose folders do not lie side by side have a cache each.
    threads = [threading.Thread(target=run, args=(Path(name),)) for name in ("cache", "another")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert num_read == 1
    assert [reference() for reference in kept] == [None, None]


@pytest.mark.long
def test_a_run_that_grows_and_one_that_fails_leave_the_others_as_they_are(tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {
        "fails": {**STATIC, "optimization__learning_rate": 1e20},
        "static": STATIC,
        "grows": GROWING,
    }
    beside = [member(tmp_path / "beside", name, **changes) for name, changes in runs.items()]
    packed(*beside, at_once=3)
    assert outcomes(*beside) == ["failed", "finished", "finished"]
    assert "not finite" in beside[0].outcome()["reason"]
    assert "DivergenceError" in (beside[0].folder / "pack.log").read_text()
    assert any(event["kind"] == "surgery" and event["committed"] for event in journal(beside[2]))
    for one in beside[1:]:
        reference = member(tmp_path / "alone", one.name, **runs[one.name])
        alone(reference)
        assert_same(weights(one), weights(reference))
        assert one.result()["test_loss"] == reference.result()["test_loss"]  # type: ignore[index]
    assert turns.current() is None


def test_runs_take_turns_and_share_the_data_but_not_the_random_numbers() -> None:
    group, order, data = turns.Turns(), list[str](), torch.arange(10.0)
    drawn: dict[str, list[torch.Tensor]] = {"a": [], "b": []}
    placed = []

    def run(name: str) -> None:
        with group.run():
            torch.manual_seed(7)
            torch.set_default_dtype(torch.float64 if name == "a" else torch.float32)
            placed.append(on_device(data.clone(), torch.device("cpu")))
            for _ in range(3):
                order.append(name)
                drawn[name].append(torch.rand(2))
                turns.pass_on()

    threads = [threading.Thread(target=run, args=(name,)) for name in drawn]
    with group.between():  # until both wait
        for thread in threads:
            thread.start()
        while len(group._waiting) < len(threads):
            pass
    for thread in threads:
        thread.join()
    assert sorted(order[:2]) == sorted(order[2:4]) == ["a", "b"]
    expected = torch.rand(2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert torch.equal(drawn["a"][0], expected)
    assert drawn["b"][0].dtype is torch.float32
    assert torch.get_default_dtype() is torch.float32
    assert placed[0] is placed[1]


def begin_in_order(group: turns.Turns, *targets: Callable[[], None]) -> None:
    """Run threads that get their first turns in this order, until all have ended."""
    threads = [threading.Thread(target=target) for target in targets]
    with group.between():
        for number, thread in enumerate(threads, start=1):
            thread.start()
            while len(group._waiting) < number:
                pass
    for thread in threads:
        thread.join()


def test_runs_that_begin_together_are_a_turn_apart_so_that_their_epochs_do_not_end_together() -> None:
    group, num_steps = turns.Turns(), dict[str, int]()
    others: dict[str, int] | None = None

    def run(name: str) -> None:
        nonlocal others
        with group.run():
            for num_steps[name] in range(1, 100):
                if num_steps["a"] == 5 * turns.STEPS and others is None:
                    others = dict(num_steps)
                turns.step_done()

    begin_in_order(group, *(functools.partial(run, name) for name in "abc"))
    assert others == {"a": 5 * turns.STEPS, "b": 3 * turns.STEPS, "c": 2 * turns.STEPS}


class LateEvent(threading.Event):
    """What `turns.wait_for` uses of a CUDA event: the device reaches it when another run has done something."""

    query = threading.Event.is_set

    def synchronize(self) -> None:
        assert self.wait(10), "the other run had no turn meanwhile"


def test_the_others_go_on_while_a_run_waits_for_an_event_of_the_device() -> None:
    group, event, order = turns.Turns(), LateEvent(), list[str]()

    def wait() -> None:
        with group.run():
            turns.wait_for(event)  # type: ignore[arg-type]
            order.append("waited")
            turns.wait_for(event)  # type: ignore[arg-type]
            order.append("did not wait again")

    def work() -> None:
        with group.run():
            event.set()
            order.append("worked")

    begin_in_order(group, wait, work)
    assert order == ["worked", "waited", "did not wait again"]


@pytest.mark.long
def test_a_run_that_does_not_fit_beside_the_others_runs_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [member(tmp_path, f"seed-{seed}", rng_seed=seed, **STATIC) for seed in (0, 1)]
    step, num_refused = TrainStep._step, 0

    def limited(self: TrainStep) -> None:  # a device on which the second run has too little room
        nonlocal num_refused
        if turns.is_shared() and int(self._position[2]) == 3 and not num_refused:
            num_refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self)

    monkeypatch.setattr(TrainStep, "_step", limited)
    packed(*members, at_once=2)
    assert outcomes(*members) == ["finished", "finished"]
    (again,) = [one for one in members if "it runs again, alone" in (one.folder / "pack.log").read_text()]
    ended = [event["status"] for event in journal(again) if event["kind"] == "run_ended"]
    assert ended == ["finished"]  # it had no checkpoint yet, and began anew
    reference = member(tmp_path / "alone", again.name, rng_seed=int(again.name[-1]), **STATIC)
    alone(reference)
    assert_same(weights(again), weights(reference))


@pytest.mark.long
def test_a_signal_makes_all_save_and_the_same_job_resumes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [member(tmp_path, f"seed-{seed}", rng_seed=seed, **STATIC) for seed in range(3)]
    update, sent = TrainStep.forward_backward_update, []

    def interrupted(self: TrainStep, **position: int) -> None:
        update(self, **position)
        turns.pass_on()
        if position["step"] == 6 and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
            while stopping.requested() is None:  # the main thread handles it
                time.sleep(0.001)

    monkeypatch.setattr(TrainStep, "forward_backward_update", interrupted)
    with pytest.raises(SystemExit) as ended:
        packed(*members, at_once=2)
    assert ended.value.code == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert outcomes(*members) == ["interrupted"] * 3
    assert [one.outcome()["reason"] for one in members] == ["SIGTERM", "SIGTERM", "cancelled before it began"]
    assert stopping.requested() is None
    packed(*members, at_once=2)  # a requeued job
    assert outcomes(*members) == ["finished"] * 3
    for one in members[:2]:
        reference = member(tmp_path / "alone", one.name, rng_seed=int(one.name[-1]), **STATIC)
        alone(reference)
        assert_same(weights(one), weights(reference))


def test_members_are_dealt_over_the_gpus_and_each_job_is_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [member(tmp_path, f"seed-{seed}") for seed in range(5)]
    queue = queue_of("packed", {"members": 3})
    assert isinstance(queue, local.LocalQueue)
    dealt = [[one.name[-1] for one in job] for job in queue.jobs_of(members, 2)]
    assert dealt == [["0", "2", "4"], ["1", "3"]]
    assert queue.program() == ["esper.sweep.pack", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert queue.describe() == "this machine, 3 at a time on each of 2 GPUs"
    queue.require([tiny_config(device="cuda")])
    members[0].set_job(Job(queue="packed", id=local._job_id(os.getpid())))
    assert member_states(members)["seed-0"].state == "waiting"
    members[0].begin()
    assert member_states(members)["seed-0"].state == "running"
    assert str(log_file(members[0])).endswith(".sweep/jobs.log")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"device": "cpu"}, "device=cpu: hydra/launcher=packed shares GPUs; use device=cuda, or hydra/launcher=local"),
        ({"profile_training": True}, "profile_training=true: hydra/launcher=packed would profile all runs at once"),
        ({"comparison": ComparisonConfig(arm="final_seconds")}, "arm=final_seconds: compares times, and with"),
    ],
)
def test_a_run_that_cannot_share_a_gpu_is_refused(
    changes: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = queue_of("packed", {})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"no GPU to share; on CPUs use hydra/launcher=local"):
        queue.require([TolariaConfig()])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ConfigError, match=line):
        queue.require([tiny_config(**{"device": "auto"} | changes)])


@pytest.mark.parametrize("number", [0, 25, "most", True])
def test_a_number_of_members_that_is_not_allowed_is_refused(number: object) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.members=\w+: allowed are 1 to 24, and auto"):
        queue_of("packed", {"members": number})
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.members=2: runs that share a GPU are one process"):
        queue_of("slurm", {"members": 2, "nodes": 2})


def test_too_little_memory_alone_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: TrainStep) -> None:
        raise MemoryLimitError("CUDA out of memory")

    monkeypatch.setattr(TrainStep, "_step", full)
    one = member(tmp_path, "seed-0", **STATIC)
    packed(one)
    assert outcomes(one) == ["failed"]
    assert one.outcome()["reason"].startswith("out of memory (")
