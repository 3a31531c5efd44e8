"""Cost of the bus: journal writes of the training thread, messages per second, and latency of a shared Tamiyo.

Publishing: the training thread only writes events to its journal; a second thread tails the journal and publishes. The
cost for the training thread is therefore the slowdown of `Journal.write` next to that thread, with a server that is
`up`, `hung` (SIGSTOP) or `gone` (a closed port), against `memory` (no bus). Four processes write at the same time, a
quarter of a period apart, so that other load on the machine affects all alike; each round starts new processes. Most
events are ends of epochs, which are published, and some are the signals of 16 sites, at a far higher rate than in
training. At the end of a round the hung server resumes, and the messages are counted: none may be missing.

Messages: one client, one thread, without pauses. Tamiyo: `esper services up` in a process of its own, with one run and
then many runs that send the next request on each reply.

    python benchmarks/bus.py --out bus.json

It starts its own redis-servers on loopback ports, with append-only files, and stops them at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import redis

from benchmarks.bus_tamiyo import PATIENCE_S, many_runs, one_run, rows, service, summary
from benchmarks.bus_writer import FOUND, SCORED_EVERY, an_epoch, some_signals
from benchmarks.measuring import environment, median_and_range, table, verdict, write_json
from benchmarks.places import new_file
from esper.configs import RedisConfig
from esper.contracts.events import EpochEnded
from esper.contracts.messages import EpochReport, HealthReport, Payload, TopicName
from esper.errors import BusError
from esper.oona.codec import encode, message
from esper.oona.redis import RedisBus

STATES = ("memory", "up", "hung", "gone")
GOALS_US = {"median": 10.0, "p99": 100.0}
_PERCENTS = {"median": 50, "p99": 99}
_BATCH = 64
_REPETITIONS = 5


@dataclass(frozen=True, kw_only=True)
class Server:
    """A redis-server started by the benchmark."""

    process: subprocess.Popen[bytes]
    url: str
    version: str

    def client(self) -> redis.Redis:
        """A plain client, to inspect the server."""
        return redis.Redis.from_url(self.url)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the JSON file."""
    options = _options().parse_args(arguments)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bus-") as folder, contextlib.ExitStack() as stack:
        server, hung = (stack.enter_context(_server(Path(folder, name))) for name in ("redis", "redis-hung"))
        rounds = [
            _round(options, server, hung, Path(folder, f"round-{number}"), number=number)
            for number in range(options.rounds)
        ]
        messages = [
            _messages(options, server, payload, kind=kind)
            for kind, payload in (("an epoch", _epoch()), ("signals of 16 sites", _health()))
        ]
        with service(server.url, Path(folder)) as tamiyo:
            alone = one_run(server.url, num_questions=options.questions)
            pids = {"Tamiyo": tamiyo.pid, "Redis": server.process.pid}
            many = many_runs(server.url, pids=pids, num_runs=options.runs, seconds=options.seconds)
    where = environment() | {"redis": server.version, "redis-py": redis.__version__}
    where["load"] = f"{load:.1f} before, {os.getloadavg()[0]:.1f} after"
    publishing = {name: _publishing(name, rounds) for name in STATES}
    found = {"publishing": publishing, "messages": messages, "one_run": alone, "many_runs": many}
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    write_json(options.out, {"environment": where, "settings": settings, **found})
    print(where)
    print(table([_publishing_row(name, one) for name, one in publishing.items()]), end="\n\n")
    print(table([_messages_row(row) for row in messages]), end="\n\n")
    print(table(rows(alone, many)), end="\n\n")
    print("\n".join(_goal(name, what, publishing[name]) for name in STATES[1:] for what in GOALS_US))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=new_file, required=True, help="JSON file for the results")
    parser.add_argument("--rounds", type=int, default=8, help="rounds, each with new writers")
    parser.add_argument("--events", type=int, default=1000, help="events per writer")
    parser.add_argument("--rate", type=float, default=200.0, help="events per second of a writer")
    parser.add_argument("--messages", type=int, default=1024, help=f"messages of each of {_REPETITIONS} repetitions")
    parser.add_argument("--questions", type=int, default=300, help="requests of the single run")
    parser.add_argument("--runs", type=int, default=64, help="concurrent runs")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of their requests")
    return parser


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[Server]:
    """A server on a free loopback port, terminated at the end."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not installed (apt-get install redis-server)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder.mkdir()
    settings = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes", "--save", ""]
    process = subprocess.Popen([program, *settings], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    try:
        url, deadline = f"redis://127.0.0.1:{port}/0", time.monotonic() + 20
        with contextlib.closing(RedisBus(RedisConfig(url=url))) as bus:
            while True:
                try:
                    version = bus.ping()
                    break
                except BusError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
        yield Server(process=process, url=url, version=version)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait()


def _round(
    options: argparse.Namespace, up: Server, hung: Server, folder: Path, *, number: int
) -> dict[str, dict[str, Any]]:
    """Seconds of each write and CPU share of other threads, for each state of the server."""
    folder.mkdir()
    for server in (up, hung):
        server.client().flushall()
    with socket.socket() as closed, contextlib.ExitStack() as stack:
        closed.bind(("127.0.0.1", 0))  # without listening
        gone = f"redis://127.0.0.1:{closed.getsockname()[1]}/0"
        urls = {"memory": "-", "up": up.url, "hung": hung.url, "gone": gone}
        writers = {name: stack.enter_context(_writer(folder / name, url, options)) for name, url in urls.items()}
        for writer in writers.values():
            _expect(writer, "ready")
        hung.process.send_signal(signal.SIGSTOP)
        begin = time.monotonic() + 0.5
        for index, writer in enumerate(writers.values()):
            turn = (index + number) % len(writers)
            _send(writer, str(begin + turn / len(writers) / options.rate))
        for writer in writers.values():
            _expect(writer, "written")
        hung.process.send_signal(signal.SIGCONT)
        for writer in writers.values():
            _send(writer, "close")
            writer.wait()
    found = {name: json.loads((folder / name / FOUND).read_text()) for name in urls}
    for name, server in (("up", up), ("hung", hung)):
        num_arrived = int(server.client().xlen("esper:system.events.epoch"))
        num_dropped = json.loads((folder / name / "bus.json").read_text())["dropped"]
        if num_arrived + num_dropped < len(_of_epochs(found[name])):
            raise RuntimeError(f"{name}: {num_arrived} messages arrived, {num_dropped} were dropped: some are missing")
        found[name]["arrived_and_dropped"] = (num_arrived, num_dropped)
    return found


@contextlib.contextmanager
def _writer(run_dir: Path, url: str, options: argparse.Namespace) -> Iterator[subprocess.Popen[str]]:
    script = str(Path(__file__).with_name("bus_writer.py"))
    process = subprocess.Popen(
        [sys.executable, script, str(run_dir), url, str(options.events), str(options.rate)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _expect(writer: subprocess.Popen[str], word: str) -> None:
    assert writer.stdout is not None
    if (heard := writer.stdout.readline().strip()) != word:
        raise RuntimeError(f"a writer said {heard!r}, not {word!r}")


def _send(writer: subprocess.Popen[str], line: str) -> None:
    assert writer.stdin is not None
    writer.stdin.write(f"{line}\n")
    writer.stdin.flush()


def _messages(options: argparse.Namespace, server: Server, payload: Payload, *, kind: str) -> dict[str, Any]:
    """Messages per second: published in batches, published singly, and taken in batches and acknowledged."""
    topic = TopicName.EPOCHS if isinstance(payload, EpochReport) else TopicName.SEED_HEALTH
    num = options.messages
    rates: dict[str, list[float]] = {"published_64": [], "published_1": [], "taken": []}
    with contextlib.closing(RedisBus(RedisConfig(url=server.url, timeout_s=PATIENCE_S))) as bus:
        for _ in range(_REPETITIONS):
            for name, size in (("published_64", _BATCH), ("published_1", 1)):
                server.client().flushall()
                batches = [[message(topic, payload, sender="a run", trace="a run")] * size] * (num // size)
                started = time.perf_counter()
                for batch in batches:
                    bus.publish(batch)
                rates[name].append(num / (time.perf_counter() - started))
            bus.take(topic, group="readers", consumer="one", count=1)  # creates the group
            started, num_taken = time.perf_counter(), 0
            while entries := bus.take(topic, group="readers", consumer="one", count=_BATCH):
                bus.acknowledge(topic, group="readers", entries=entries)
                num_taken += len(entries)
            rates["taken"].append(num_taken / (time.perf_counter() - started))
            assert num_taken == num - 1, num_taken
    return {"what": kind, "bytes": len(encode(batches[0][0])), "per_s": rates}


def _epoch() -> EpochReport:
    fields = {field.name: getattr(an_epoch(7), field.name) for field in dataclasses.fields(EpochEnded)}
    return EpochReport(run_id="a/run", **fields)


def _health() -> HealthReport:
    return HealthReport(run_id="a/run", epoch=7, signals=some_signals(7))


def _of_epochs(found: dict[str, Any]) -> list[float]:
    return [one for index, one in enumerate(found["seconds"]) if (index + 1) % SCORED_EVERY]


def _more_us(name: str, rounds: Sequence[dict[str, Any]], percent: float) -> tuple[float, float, float]:
    """Difference in µs of a percentile to that without a bus, with a 95 % bootstrap interval over rounds."""
    pairs = [[np.array(_of_epochs(one[state])) for state in (name, "memory")] for one in rounds]

    def difference(drawn: Sequence[int]) -> float:
        ours, others = (np.concatenate([pairs[index][side] for index in drawn]) for side in (0, 1))
        return 1e6 * float(np.percentile(ours, percent) - np.percentile(others, percent))

    draws = np.random.default_rng(0).integers(len(rounds), size=(2000, len(rounds)))
    low, high = np.percentile([difference(drawn) for drawn in draws], [2.5, 97.5])
    return difference(range(len(rounds))), float(low), float(high)


def _publishing(name: str, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of a write, overall and by round, and the difference to those without a bus."""
    epochs = [_of_epochs(one[name]) for one in rounds]
    signals = [one[name]["seconds"][SCORED_EVERY - 1 :: SCORED_EVERY] for one in rounds]
    return {
        "epoch_s": summary([second for one in epochs for second in one]),
        "signals_s": summary([second for one in signals for second in one]),
        "epoch_s_by_round": [summary(one) for one in epochs],
        "more_us": {what: _more_us(name, rounds, percent) for what, percent in _PERCENTS.items()},
        "other_threads": statistics.mean(one[name]["other_threads"] for one in rounds),
        "arrived_and_dropped": [one[name].get("arrived_and_dropped") for one in rounds],
    }


def _publishing_row(name: str, found: dict[str, Any]) -> dict[str, object]:
    epoch = found["epoch_s"]
    return {
        "redis": name,
        "n": epoch["n"],
        "epoch, µs: median": f"{1e6 * epoch['median']:.1f}",
        **{what: f"{1e6 * epoch[what]:.0f}" for what in ("p99", "worst")},
        "signals, µs: median": f"{1e6 * found['signals_s']['median']:.0f}",
        **{
            f"more than memory, µs: {what}": None if name == "memory" else f"{more:+.1f} ({low:+.1f} to {high:+.1f})"
            for what, (more, low, high) in found["more_us"].items()
        },
        "other threads, of a core": f"{found['other_threads']:.1%}",
    }


def _messages_row(row: dict[str, Any]) -> dict[str, object]:
    shown = {
        name: median_and_range(row["per_s"][key], "{:,.0f}")
        for name, key in (
            (f"published, {_BATCH} at a time, a second", "published_64"),
            ("one by one", "published_1"),
            (f"taken and acknowledged, {_BATCH} at a time", "taken"),
        )
    }
    return {"message": row["what"], "bytes": row["bytes"], **shown}


def _goal(name: str, what: str, found: dict[str, Any]) -> str:
    goal, (_, low, high) = GOALS_US[what], found["more_us"][what]
    words = f"{name}: {what} <= {goal:g} µs more than memory"
    if low <= goal < high:
        return f"goal {words}: undecided, the interval contains it"
    return verdict(words, high <= goal)


if __name__ == "__main__":
    main()
