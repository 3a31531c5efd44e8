"""Overhead of a sweep's member beyond its training.

One command launches a hundred tiny runs with each of Hydra's launchers: `basic` (sequentially in one process), `local`
(a process each, several in parallel) and `slurm` (an array job; needs SLURM, e.g. by scripts/slurm_up.sh). Overhead is
the time of a run slot other than training, per member, split into: composing, checking and submitting; waiting in the
queue, starting Python and importing torch; opening the run (data, network, journal); closing it (report page); and
noticing the end.

    python benchmarks/sweep_overhead.py --out sweep_overhead.json [--launchers basic local slurm]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import environment, table, write_json
from benchmarks.places import new_file

PHASES = ("compose and submit", "queue, start, import", "open", "train", "close", "notice the end")
LAUNCHERS = ("basic", "local", "slurm")
_ROOT = Path(__file__).resolve().parent.parent
_TRAIN = "import sys; sys.argv[0] = 'esper-train'; from esper.train import main; main()"
_TINY = ("experiment=debug", "debug_mode=false", "morphogenetic=off", "logging.log_level=INFO", "device=cpu")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON file."""
    options = _options().parse_args(arguments)
    measured: dict[str, dict[str, float]] = {}
    for launcher in options.launchers:
        with tempfile.TemporaryDirectory(prefix="sweep-overhead-") as folder:
            measured[launcher] = _sweep(Path(folder), launcher, options)
        write_json(options.out, {"members": options.members, "at_a_time": options.at_a_time, "seconds": measured})
    print(environment())
    print(table([_row(launcher, found, options) for launcher, found in measured.items()]))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=new_file, required=True, help="JSON file for the results")
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=["basic", "local"])
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument(
        "--at-a-time",
        type=int,
        default=os.cpu_count() or 1,
        help="parallel runs, except with basic; SLURM must have the CPUs",
    )
    return parser


def _sweep(folder: Path, launcher: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each phase per member, and of the whole command."""
    queue = {
        "basic": [],
        "local": [f"hydra.launcher.jobs={options.at_a_time}"],
        "slurm": [
            *("hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1", "hydra.launcher.poll_s=1"),
            f"hydra.launcher.max_running={options.at_a_time}",
        ],
    }[launcher]
    command = [*_TINY, f"rng_seed=range({options.members})", f"hydra/launcher={launcher}", *queue]
    started, submitted = time.time(), 0.0
    with subprocess.Popen(
        [sys.executable, "-c", _TRAIN, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if f"{options.members} submitted" in line:
                submitted = time.time()
    if process.returncode:
        raise RuntimeError(f"esper-train -m {' '.join(command)} ended with {process.returncode}")
    at_a_time = 1 if launcher == "basic" else options.at_a_time
    return _phases(folder / "outputs" / "debug", started, submitted, time.time(), at_a_time=at_a_time)


def _phases(sweep_dir: Path, started: float, submitted: float, ended: float, *, at_a_time: int) -> dict[str, float]:
    """Seconds per member: of the run slots after submission, and of the command before and after."""
    journals = [_journal(path) for path in sweep_dir.glob("*/journal.jsonl")]
    num = len(journals)
    train = sum(one["run_ended"] - one["run_started"] for one in journals)
    members = [path.parent for path in (sweep_dir / ".sweep").glob("*/outcome.json")]
    if not members:  # one process, whose phases are not recorded
        return {"command": ended - started, "train": train / num, "overhead": (ended - started - train) / num}
    began = sum((member / "began").stat().st_mtime for member in members)
    done = [(member / "outcome.json").stat().st_mtime for member in members]
    opened = sum(one["run_started"] for one in journals) - began
    closed = sum(done) - sum(one["run_ended"] for one in journals)
    busy = at_a_time * (max(done) - submitted)
    totals = (
        *(submitted - started, busy - opened - train - closed, opened, train, closed),
        ended - max(done),
    )
    found = {phase: total / num for phase, total in zip(PHASES, totals, strict=True)}
    return {"command": ended - started, **found, "overhead": sum(found.values()) - found["train"]}


def _journal(path: Path) -> dict[str, float]:
    """Time of the last event of each kind."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return {event["kind"]: event["time_unix_s"] for event in events}


def _row(launcher: str, found: dict[str, float], options: argparse.Namespace) -> dict[str, object]:
    at_a_time = 1 if launcher == "basic" else options.at_a_time
    shown: dict[str, object] = {
        "launcher": launcher,
        "members": f"{options.members}, {at_a_time} at a time",
        "whole command, s": f"{found['command']:.0f}",
        "overhead per member, s": f"{found['overhead']:.2f}",
    }
    return shown | {phase: f"{found[phase]:.3f}" if phase in found else None for phase in PHASES}


if __name__ == "__main__":
    main()
