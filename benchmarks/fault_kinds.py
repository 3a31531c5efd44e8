"""Faults of processes, disks, memory and servers, at random moments: the training must end as if undisturbed."""

from __future__ import annotations

import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.fault_runs import Storm, check, check_refused, esper

__all__ = ["FAULTS"]

_STOPS = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129, "SIGUSR1": 138, "SIGUSR2": 140}


def kill(storm: Storm) -> None:
    """SIGKILL at random moments, up to four times in a row."""
    training, expected, seconds = storm.training()
    for _ in range(storm.rng.randint(1, 4)):
        process = training.start()
        training.wait_for("run_started", process)
        time.sleep(storm.rng.uniform(0, seconds))
        process.kill()
        training.end(process)
    training.check_whole(training.run(), expected)


def kill_while_saving(storm: Storm) -> None:
    """SIGKILL as soon as a checkpoint's temporary folder is seen."""
    training, expected, _ = storm.training()
    for _ in range(3):
        process = training.start()
        until = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < until:
            if list(training.cwd.glob("outputs/storm/*/checkpoints/.*")):
                break
        process.kill()
        training.end(process)
    training.check_whole(training.run(), expected)


def kill_while_growing(storm: Storm) -> None:
    """SIGKILL within 30 ms of the intent to grow."""
    training, expected, _ = storm.training(storm.rng.choice(["grows", "copies"]))
    process = training.start()
    training.wait_for("surgery_intended", process)
    time.sleep(storm.rng.uniform(0, 0.03))
    process.kill()
    training.end(process)
    training.check_whole(training.run(), expected)


def stop(storm: Storm) -> None:
    """A signal that asks to end, at a random moment from the start of the process on; then the same command."""
    training, expected, seconds = storm.training()
    name = storm.rng.choice(sorted(_STOPS))
    process = training.start()
    training.wait_for("run_started", process)
    time.sleep(storm.rng.uniform(0, seconds))
    process.send_signal(signal.Signals[name])
    started = time.monotonic()
    ended = training.end(process)
    check(ended.code in (0, _STOPS[name]), f"{name}: exit {ended.code}: {ended.last_line}")
    check(time.monotonic() - started < 30, f"{name}: ended after {time.monotonic() - started:.0f} s")
    training.check_whole(training.run(), expected)


def stop_then_kill(storm: Storm) -> None:
    """SIGTERM, and kill -9 up to 0.3 s later, twice."""
    training, expected, seconds = storm.training()
    for _ in range(2):
        process = storm.strike(training, seconds)
        process.terminate()
        time.sleep(storm.rng.uniform(0, 0.3))
        process.kill()
        training.end(process)
    training.check_whole(training.run(), expected)


def closed_pipe(storm: Storm) -> None:
    """The reader of the output goes away; training goes on."""
    training, expected, _ = storm.training()
    process = training.start()
    training.wait_for("run_started", process)
    assert process.stdout is not None
    process.stdout.close()
    check(process.wait(120) == 0, f"exit {process.returncode}")
    check(training.weights() == expected, "other weights than the undisturbed run")


def two_writers(storm: Storm) -> None:
    """The same command while the run goes on: refused, and the first one is not disturbed."""
    training, expected, seconds = storm.training()
    process = storm.strike(training, 0.2 * seconds)
    second = training.run()
    first = training.end(process)
    if second.code:  # else the first had ended before the second looked
        check_refused(second)
    training.check_whole(first, expected)


def full_disk(storm: Storm) -> None:
    """A file system that fills up; after more space, the same command."""
    training, expected, _ = storm.training("grows")
    folder = training.cwd / "outputs"
    folder.mkdir()
    size = storm.rng.randint(24, 200)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder], check=True)
    try:
        ended = training.run()
        if ended.code:
            check_refused(ended, codes=(1,))
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        training.check_whole(training.run(), expected)
    finally:
        subprocess.run(["umount", folder], check=False)


def out_of_memory(storm: Storm) -> None:
    """An address space that is too small from a random moment on; afterwards the same command has enough."""
    training, _, seconds = storm.training("grows")
    process = storm.strike(training, 0.5 * seconds)
    memory = psutil.Process(process.pid).memory_info().vms if process.poll() is None else 0
    if memory:
        limit = memory + storm.rng.randint(0, 2 << 20)
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
    ended = training.end(process)
    if ended.code:
        check_refused(ended, codes=(1,))
    again = training.run()
    check(again.code == 0, f"exit {again.code}: {again.last_line}")


def diverges(storm: Storm) -> None:
    """A learning rate at which the loss becomes infinite: one line, and never a result."""
    training, _, _ = storm.training("grows")
    for _ in range(2):
        ended = training.run("optimization.learning_rate=1e20", "optimization.warmup_epochs=0")
        check_refused(ended, codes=(1,))


def lost_decoder(storm: Storm) -> None:
    """A process that decodes images is killed, or stops; the same command goes on."""
    training, expected, seconds = storm.training("streams", "dataset.timeout_s=5")
    process = storm.strike(training, 0.3 * seconds)
    decoders = [child for child in _children(process) if "spawn_main" in " ".join(child.cmdline())]
    if decoders:
        storm.rng.choice(decoders).send_signal(storm.rng.choice([signal.SIGKILL, signal.SIGSTOP]))
    ended = training.end(process)
    if ended.code:
        check_refused(ended)
        ended = training.run()
    training.check_whole(ended, expected)
    check(not psutil.pid_exists(process.pid), "the process is still there")


def lost_rank(storm: Storm) -> None:
    """One of two ranks is killed, or stops: the other one ends; the same command goes on."""
    training, expected, seconds = storm.training("grows", num_ranks=2)
    ranks = training.start_ranks(2, "ranks.timeout_s=5")
    training.wait_for('"checkpoint"', ranks[0])
    time.sleep(storm.rng.uniform(0, 0.5 * seconds))
    victim, other = storm.rng.sample(ranks, 2)
    victim.send_signal(storm.rng.choice([signal.SIGKILL, signal.SIGSTOP]))
    ended = training.end(other)
    victim.kill()
    training.end(victim)
    if ended.code:
        check(ended.code == 1, f"exit {ended.code}: {ended.last_line}")
    for again in [training.end(rank) for rank in training.start_ranks(2)]:
        check(again.code == 0, f"exit {again.code}: {again.last_line}")
    check(training.weights() == expected, "other weights than the undisturbed run")


def bus_fails(storm: Storm) -> None:
    """The Redis server is killed, suspended, flooded with garbage, or restarted; training is not disturbed."""
    if shutil.which("redis-server") is None:
        return
    training, expected, seconds = storm.training(storm.rng.choice(["grows", "copies"]))
    with _redis(training.cwd) as (server, port):
        process = training.start("bus=redis", f"redis.url=redis://127.0.0.1:{port}")
        training.wait_for("run_started", process)
        time.sleep(storm.rng.uniform(0, seconds))
        what = storm.rng.choice(["kill", "stop", "garbage"])
        if what == "garbage":
            _garbage(storm, port)
        else:
            server.send_signal(signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        ended = training.end(process)
        server.send_signal(signal.SIGCONT)
    training.check_whole(ended, expected)


def tracker_hangs(storm: Storm) -> None:
    """An MLflow server that accepts connections and never replies."""
    training, expected, _ = storm.training("grows")
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        ended = training.run("tracking=mlflow", f"tracking.uri={uri}")
    training.check_whole(ended, expected)


def sweep_runner_killed(storm: Storm) -> None:
    """A local sweep with a failing member, whose launcher and runner are killed; `esper sweep resume` completes it."""
    training, _, seconds = storm.training("grows")
    process = training.start(
        "-m", "hydra/launcher=local", "hydra.launcher.jobs=2", "optimization.learning_rate=0.05,1e20"
    )
    training.wait_for("run_started", process)
    time.sleep(storm.rng.uniform(0, seconds))
    process.kill()
    training.end(process)
    folder = training.cwd / "outputs" / "storm"
    if not (folder / ".sweep").is_dir():
        return
    ended = esper("sweep", "resume", str(folder), cwd=training.cwd)
    check_refused(ended, codes=(1,))
    shown = esper("sweep", "status", str(folder), cwd=training.cwd)
    check("1 finished" in shown.out and "1 failed" in shown.out, shown.out.partition("\n")[0])


def folder_removed(storm: Storm) -> None:
    """The run folder, or its lock, is removed while the run goes on: an error, not a result that is not there."""
    training, expected, seconds = storm.training()
    process = storm.strike(training, 0.3 * seconds)
    run_dir = training.run_dir
    if run_dir is None or process.poll() is not None:
        training.check_whole(training.end(process), expected)
        return
    if storm.rng.random() < 0.5:
        shutil.rmtree(run_dir, ignore_errors=True)
    else:
        (run_dir / ".lock").unlink()
    ended = training.end(process)
    check(ended.code == 1 or (run_dir / "report.html").is_file(), f"exit {ended.code}, and the folder is gone")
    training.check_whole(training.run(), expected)


def _children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextmanager
def _redis(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield server, port
    finally:
        server.kill()
        server.wait()


def _garbage(storm: Storm, port: int) -> None:
    import redis

    with redis.Redis(port=port, socket_timeout=5) as client:
        topics = [key for key in client.scan_iter("esper:*") if client.type(key) == b"stream"]  # type: ignore[union-attr]
        for _ in range(200):
            if topics:
                client.xadd(storm.rng.choice(topics), {b"m": storm.rng.randbytes(storm.rng.randint(0, 4096))})


FAULTS: dict[str, Callable[[Storm], None]] = {
    "kill": kill,
    "kill while saving": kill_while_saving,
    "kill while growing": kill_while_growing,
    "stop signal": stop,
    "stop, then kill": stop_then_kill,
    "closed pipe": closed_pipe,
    "two writers": two_writers,
    "full disk": full_disk,
    "out of memory": out_of_memory,
    "divergence": diverges,
    "lost decoder": lost_decoder,
    "lost rank": lost_rank,
    "bus fails": bus_fails,
    "tracker hangs": tracker_hangs,
    "sweep runner killed": sweep_runner_killed,
    "folder removed": folder_removed,
}
