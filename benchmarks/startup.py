"""Time from the command to the first training step.

Each measurement is a process that runs `esper-train` to the end of its first step, synchronised with the device. The
phases are: imports of the command; composing and checking the configuration; importing torch and the run's other
modules; loading the data; building the network; the rest of opening the run; the first step. Image folders are measured
without Esper's cache of decoded images (the files themselves are in the page cache, having just been written) and with
it; another process decodes them while torch is imported, so that "data" is what is left then. "CPU seconds" are those
of all processes.

    python benchmarks/startup.py --out startup.json [--data FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from benchmarks.measuring import environment, median_and_range, table, verdict, write_json
from benchmarks.places import image_folder, new_file

GOAL_S, FIRST_TIME_GOAL_S = 10.0, 15.0
"""On a GPU machine with 16 cores; the latter with a folder of 60,000 JPEGs that is met for the first time."""
PHASES = ("imports of the command", "compose and check", "imports of the run", "data", "network", "rest", "first step")
_CPU = "CPU seconds"
_ROOT = Path(__file__).resolve().parent.parent
_CHILD = Path(__file__).with_name("startup_child.py")
_NUM_CLASSES = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON file."""
    options = _options().parse_args(arguments)
    deadline = time.monotonic() + options.budget_seconds
    measured: dict[str, list[dict[str, float]]] = {}
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="startup-") as name:
        folder = Path(name)
        images = Path(options.data).resolve() if options.data else None
        if images is None and options.files:
            images = _image_folder(folder / "images", options.files)
        for dataset, overrides, is_cached in _datasets(options, images):
            found = measured.setdefault(dataset, [])
            for number in range(options.repetitions):
                if time.monotonic() > deadline:
                    notes.append(f"{dataset}: {number} of {options.repetitions}, then the budget was used up")
                    break
                if not is_cached:
                    shutil.rmtree(folder / "outputs", ignore_errors=True)
                found.append(_start(folder, [*options.overrides, *overrides, f"device={options.device}"], options))
            write_json(options.out, {"device": options.device, "seconds": measured, "notes": notes})
    print(environment())
    print(table([_row(dataset, found) for dataset, found in measured.items()]))
    print("\n".join(notes))
    for dataset, found in measured.items():
        totals = [sum(one[phase] for phase in PHASES) for one in found]
        goal = FIRST_TIME_GOAL_S if dataset.endswith("not cached") else GOAL_S
        print(f"{dataset}: " + verdict(f"<= {goal:g} s", statistics.median(totals) <= goal if totals else None))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    on_cuda = torch.cuda.is_available()
    parser.add_argument("--out", type=new_file, required=True, help="JSON file for the results")
    parser.add_argument("--device", default="cuda" if on_cuda else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--data", type=image_folder, help="an image folder (default: a generated one)")
    parser.add_argument("--files", type=int, default=50_000, help="images of the generated folder; 0: none")
    parser.add_argument("--tracking", choices=("mlflow", "none"), help="default: mlflow if installed")
    parser.add_argument("--budget-seconds", type=float, default=240.0, help="start no measurement after this time")
    parser.add_argument("overrides", nargs="*", default=[], help="overrides of esper-train, e.g. model=resnet_small")
    return parser


def _datasets(options: argparse.Namespace, images: Path | None) -> list[tuple[str, list[str], bool]]:
    """Name, overrides, and whether the cache of the previous run is kept."""
    found = [("made up, in memory", ["dataset=synthetic", "dataset.image_size=32", "dataset.num_examples=5000"], True)]
    if images is not None:
        overrides = ["dataset=imagefolder", f"dataset.data_dir={images}"]
        what = f"image folder, {options.files:,} files" if options.data is None else "image folder"
        found += [(f"{what}, not cached", overrides, False), (f"{what}, cached", overrides, True)]
    return found


def _start(folder: Path, overrides: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each phase of one command."""
    from importlib.util import find_spec

    tracking = options.tracking or ("mlflow" if find_spec("mlflow") else "none")
    marks = folder / "marks.json"
    command = [sys.executable, str(_CHILD), str(marks), *overrides, f"tracking={tracking}", "fresh=true"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
    started, cpu_before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, env=env, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"esper-train {' '.join(overrides)} failed: {done.stderr[-2000:]}")
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    user_and_system = cpu.ru_utime - cpu_before.ru_utime + cpu.ru_stime - cpu_before.ru_stime
    return _phases(started, json.loads(marks.read_text())) | {_CPU: user_and_system}


def _phases(started: float, marks: dict[str, Any]) -> dict[str, float]:
    loaded, built = marks["data"], marks["network"]
    return dict(
        zip(
            PHASES,
            (
                marks["main"] - started,
                marks["composed"] - marks["main"],
                marks["imported"] - marks["composed"],
                loaded[1] - loaded[0],
                built[1] - built[0],
                marks["opened"] - marks["imported"] - (loaded[1] - loaded[0]) - (built[1] - built[0]),
                marks["stepped"] - marks["opened"],
            ),
            strict=True,
        )
    )


def _image_folder(folder: Path, num_files: int) -> Path:
    """PNG files of 32x32 noise: five sixths for training, the rest for testing."""
    rng = np.random.default_rng(0)
    for number in range(num_files):
        split = "test" if number // _NUM_CLASSES % 6 == 5 else "train"
        path = folder / split / f"class{number % _NUM_CLASSES}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path, compress_level=1)
    return folder


def _row(dataset: str, found: list[dict[str, float]]) -> dict[str, object]:
    totals = [sum(one[phase] for phase in PHASES) for one in found]
    medians = {
        phase: f"{statistics.median(one[phase] for one in found):.2f}" if found else None for phase in (*PHASES, _CPU)
    }
    return {"median seconds": dataset, "n": len(found), "command to first step": median_and_range(totals, "{:.1f}")} | {
        **medians
    }


if __name__ == "__main__":
    main()
