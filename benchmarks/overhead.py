"""Cost of dormant seeds and of a tracker: ratios of speeds with 95 % confidence intervals.

Seeds: two runs in one process, `morphogenetic=heuristic` and `morphogenetic=off`, alternate in blocks of steps, in ABBA
order. Nothing has germinated. Blocks exclude scoring and validation. The interval is for these two runs: memory
placement, which makes a percent of difference on a CPU, is sampled only once.

Epochs: the same with whole epochs, see `epoch_end.py`.

Tracker: whole `esper-train` processes alternate between MLflow, an MLflow server that accepts connections and never
replies, and no tracker. Compared are the training time that the run records, which includes importing MLflow and
creating its database, and the epochs of its second half; the rest of the process's time is reported too.

    python benchmarks/overhead.py --out overhead.json [--parts seeds] [--devices cuda]
    python benchmarks/overhead.py --out epochs.json --parts epochs --devices cuda      # on a GPU in two minutes
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.epoch_end import epoch_ends
from benchmarks.measuring import Ratio, environment, paired_ratio, table, verdict, write_json
from benchmarks.places import new_file
from benchmarks.stepping import configuration, opened, own_stream, timed_steps
from esper.configs import MorphogeneticConfig
from esper.contracts.events import EpochEnded
from esper.tracking import read

GOAL = 0.99
_ROOT = Path(__file__).resolve().parent.parent
_WARMUP_STEPS = 20
_SEEDS = {
    "off": MorphogeneticConfig(enable_tamiyo=False),
    "default": MorphogeneticConfig(),
}
_PARTS = ("epochs", "seeds", "tracker")
_EPOCH_CELLS = {"cuda": ((1024, True), (128, False), (512, False)), "cpu": ((32, False),)}  # batch size, compiled
_EPOCH_SETTINGS = {
    "cuda": ["model=resnet18", "dataset.image_size=32", "dataset.num_examples=50000"],
    "cpu": ["model=resnet_small", "dataset.image_size=32", "dataset.num_examples=2048"],
}
_TRACKERS = ("none", "mlflow", "hung")
_DEVICE_SETTINGS: dict[str, dict[str, Any]] = {
    "cuda": {"model": "resnet18", "num_examples": 20_000, "image_size": 32},
    "cpu": {"model": "resnet_small", "num_examples": 2_048, "image_size": 32},
}


class _Training(NamedTuple):
    whole_s: float
    second_half_s: float
    beyond_s: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the requested parts, print the tables, write the JSON file."""
    options = _options().parse_args(arguments)
    deadline_s = time.monotonic() + options.budget_seconds
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        if "epochs" in options.parts:
            for device in options.devices:
                rows += epoch_ends(options, device=device, folder=Path(folder) / "epochs", deadline_s=deadline_s)
        if "seeds" in options.parts:
            own_stream()
            rows += [
                _seeds(options, device=device, batch_size=batch_size, folder=Path(folder))
                for device in options.devices
                for batch_size in options.batch_sizes[device]
            ]
        if "tracker" in options.parts:
            if importlib.util.find_spec("mlflow"):
                rows += _tracker(options, Path(folder))
            else:
                notes.append("tracker: not run, MLflow is not installed here")
    write_json(options.out, {"rows": rows, "notes": notes})
    print(environment())
    print(table([_table_row(row) for row in rows]))
    if ends := [row for row in rows if "end_s" in row]:
        print("milliseconds that the host spends at the end of an epoch, median:")
        print(table([_end_row(row) for row in {row["where"]: row for row in ends}.values()]))
    print("\n".join([*notes, *(_goal(row) for row in rows)]))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    available = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("--out", type=new_file, required=True, help="JSON file for the results")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=list(_PARTS))
    parser.add_argument("--devices", nargs="+", choices=("cuda", "cpu"), default=available, help="not of `tracker`")
    parser.add_argument("--pairs", type=int, default=30, help="pairs of blocks")
    parser.add_argument("--block-seconds", type=float, default=0.3, help="length of a block, in whole steps")
    parser.add_argument("--tracked-runs", type=int, default=6, help="trainings with each tracker")
    parser.add_argument("--tracked-epochs", type=int, default=200, help="epochs of each")
    parser.add_argument("--epoch-pairs", type=int, default=4, help="pairs of blocks of `epochs`")
    parser.add_argument("--epoch-seconds", type=float, default=1.5, help="length of a block, in whole epochs")
    parser.add_argument("--budget-seconds", type=float, default=110.0, help="`epochs` begins no pair after this time")
    parser.set_defaults(
        batch_sizes={"cuda": (128, 512), "cpu": (32,)}, epoch_cells=_EPOCH_CELLS, epoch_settings=_EPOCH_SETTINGS
    )
    return parser


def _seeds(options: argparse.Namespace, *, device: str, batch_size: int, folder: Path) -> dict[str, Any]:
    """Alternating blocks of both runs: ABBA."""
    with contextlib.ExitStack() as stack:
        runs = {}
        for name, morphogenetic in _SEEDS.items():
            config = configuration(
                **_DEVICE_SETTINGS[device], device=device, batch_size=batch_size, morphogenetic=morphogenetic
            )
            runs[name] = stack.enter_context(opened(config, folder / f"{device}-{batch_size}-{name}"))
            timed_steps(runs[name], _WARMUP_STEPS)
        assert not runs["off"].model.slots
        assert runs["default"].model.slots
        step_s = timed_steps(runs["off"], _WARMUP_STEPS) / _WARMUP_STEPS
        num_steps = max(1, round(options.block_seconds / step_s))
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for pair in range(options.pairs):
            for name in sorted(runs, reverse=pair % 2 == 0):
                seconds[name].append(timed_steps(runs[name], num_steps))
        assert not runs["default"].model.recipe, "a module has grown: the seeds are not dormant"
    return {
        "what": "dormant seeds / off, steps",
        "where": f"{device}, batch {batch_size}",
        "seconds": seconds,
        "steps_per_block": num_steps,
        "speed": paired_ratio(seconds["off"], seconds["default"]),
    }


def _tracker(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Whole trainings with each tracker, in alternating order."""
    found: dict[str, list[_Training]] = {name: [] for name in _TRACKERS}
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts connections, never replies
        uris = {"none": None, "mlflow": None, "hung": f"http://127.0.0.1:{server.getsockname()[1]}"}
        for number in range(options.tracked_runs):
            for name in _TRACKERS if number % 2 == 0 else _TRACKERS[::-1]:
                run_dir = folder / "tracker" / f"{name}-{number}"
                found[name].append(_train(run_dir, name, uri=uris[name], epochs=options.tracked_epochs))
    rows = []
    for name in _TRACKERS[1:]:
        for index, what in enumerate(("whole training", "epochs of the second half")):
            seconds = {arm: [training[index] for training in found[arm]] for arm in (name, "none")}
            rows.append(
                {
                    "what": f"tracker {name} / none, {what}",
                    "where": "cpu",
                    "seconds": seconds,
                    "beyond_training_s": {arm: [one.beyond_s for one in found[arm]] for arm in (name, "none")},
                    "speed": paired_ratio(seconds["none"], seconds[name]),
                }
            )
    return rows


def _train(run_dir: Path, tracker: str, *, uri: str | None, epochs: int) -> _Training:
    """A training in a child process."""
    tracking = "tracking=none" if tracker == "none" else "tracking=mlflow"
    overrides = [
        *("model=resnet_small", "model.depths=[1,1,1]", "dataset=digits", "morphogenetic=off", "device=cpu", tracking),
        *(f"optimization.max_epochs={epochs}", "optimization.learning_rate=0.01", "logging.log_level=ERROR"),
        *(f"hydra.run.dir={run_dir}", *([f"tracking.uri={uri}"] if uri else [])),
    ]
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "from esper.train import main; main()", *overrides],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    took_s = time.perf_counter() - started
    epoch_s = [event["epoch_time"] for event in read(run_dir / "journal.jsonl") if event["kind"] == EpochEnded.kind]
    trained_s = float(json.loads((run_dir / "status.json").read_text())["result"]["seconds"])
    return _Training(trained_s, sum(epoch_s[epochs // 2 :]), took_s - trained_s)


def _table_row(row: dict[str, Any]) -> dict[str, object]:
    """A row of the table; the JSON file has every block."""
    speed: Ratio = row["speed"]
    cells: dict[str, object] = {"ratio of speeds": row["what"], "where": row["where"], "n": speed.n}
    cells["mean (95 % interval)"] = str(speed)
    cells["median seconds"] = ", ".join(
        f"{name} {statistics.median(values):.3f}" for name, values in row["seconds"].items()
    )
    cells["process beyond training, median s"] = ", ".join(
        f"{name} {statistics.median(values):.1f}" for name, values in row.get("beyond_training_s", {}).items()
    )
    return cells


def _end_row(row: dict[str, Any]) -> dict[str, object]:
    return {"where": row["where"], **{part: f"{1000 * seconds:.1f}" for part, seconds in row["end_s"].items()}}


def _goal(row: dict[str, Any]) -> str:
    """Met or missed if the whole interval agrees, else undecided."""
    speed: Ratio = row["speed"]
    goal = row.get("goal", GOAL)
    subject = f"{row['what']}, {row['where']}: "
    if speed.low is None or speed.high is None or speed.low < goal <= speed.high:
        return f"{subject}goal >= {goal}: undecided by {speed.n} pairs, mean {speed.mean:.4f}"
    return subject + verdict(f">= {goal}", speed.low >= goal)


if __name__ == "__main__":
    main()
