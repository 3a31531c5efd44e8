"""Scaling over 1, 2, 4 and 8 GPUs of one machine, and how long a growth interrupts all of them.

    python benchmarks/scaling.py --out scaling.json [--ranks 2] [--networks resnet50:224:128] [--budget-seconds 600]

A cell is one measurement of a network, image size and number of ranks; the most important come first. "per rank": each
rank has the full batch; "global": the ranks share it. In both, the runs are open in the same processes and alternate in
blocks of steps, in a rotating order; while rank 0 trains alone, the others wait. These runs are "off", without growth;
"late", the same with one sum of all gradients after the backward pass; "default", with dormant seeds. One rank with its
share of a global batch shows what smaller batches cost without communication. "growth": a run with dormant seeds grows;
timed are scoring and deciding, the broadcast, the surgery and the steps until the new graph is replayed, and a hash of
all weights is compared between ranks. Memory is the allocator's, for one run. Runs train as the trainer does: on CUDA
one captured graph, gradients through NCCL. The JSON file is written after each cell. A cell that fails or hangs ends
its processes; new ones continue with the next cell. No cell starts after the budget is used up, and rounds are cut.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import measuring
from benchmarks.places import new_file
from benchmarks.scaling_cells import Cell, Plan, read_cells
from benchmarks.scaling_report import goals, tables

_CHILD = Path(__file__).with_name("scaling_cells.py")
_COUNTS = (8, 4, 2)
_ON_CUDA = ("resnet50:224:128", "resnet18:32:512", "resnet50:32:256", "resnet18:224:128")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all cells in child processes and print the tables; the exit code is 1 if a cell failed."""
    options = _options().parse_args(arguments)
    deadline = time.time() + options.budget_seconds
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text('{"cells": []}')  # without the environment: this process must not open the GPUs
    planned = _cells(options.networks, counts=sorted(options.ranks, reverse=True))
    for _, cells in itertools.groupby(planned, key=lambda cell: cell.ranks):
        _measure(options, list(cells), deadline=deadline)
    found = read_cells(options.out)
    print(measuring.environment())
    print(tables(found))
    print("\n".join(goals(found)))
    begun = {cell["name"] for cell in found}
    for name in (cell.name for cell in planned if cell.name not in begun):
        print(f"not started, the budget was used up: {name}")
    sys.exit(int(any(cell["status"] == "failed" for cell in found)))


def _cells(networks: Sequence[tuple[str, int, int]], *, counts: Sequence[int]) -> list[Cell]:
    """All cells of the first two networks, most ranks first, then those of the others."""
    return [
        Cell(kind=kind, model=model, image_size=image_size, batch_size=batch_size, ranks=ranks)
        for some in (networks[:2], networks[2:])
        for ranks in counts
        for kind in ("per rank", "global", "growth")
        for model, image_size, batch_size in some
        if ranks > 1 or kind != "global"
    ]


def _measure(options: argparse.Namespace, cells: Sequence[Cell], *, deadline: float) -> None:
    """Start processes for these cells, and again for the remaining cells after a failure."""
    left = list(cells)
    while left and time.time() < deadline:
        plan = Plan(
            out=str(options.out.absolute()),
            device=options.device,
            deadline=deadline,
            cell_seconds=options.cell_seconds,
            rounds=options.rounds,
            block_seconds=options.block_seconds,
            growths=options.growths,
            arms=options.arms,
            cells=left,
        )
        is_over = _run(plan, num_processes=left[0].ranks)
        found = read_cells(options.out)
        if not is_over and left[0].name not in {cell["name"] for cell in found}:  # the processes did not start
            found.append({"name": left[0].name, **asdict(left[0]), "status": "begun"})
        failed = [cell for cell in found if cell["status"] == "begun"]
        for cell in failed:
            cell["status"] = "failed"
            print(f"failed: {cell['name']}; see stderr of its processes", file=sys.stderr)
        if failed:
            measuring.write_json(options.out, {"cells": found})
        tried = {cell["name"] for cell in found}
        left = [] if is_over else [cell for cell in left if cell.name not in tried]


def _run(plan: Plan, *, num_processes: int) -> bool:
    """Run a plan in `num_processes` processes; returns whether none failed.

    If one fails, the others are killed, since they may wait for it forever.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    num_threads = max(1, (os.cpu_count() or 1) // num_processes)
    shared = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:  # also removes files of killed processes
        file = Path(folder, "plan.json")
        file.write_text(json.dumps(asdict(plan)))
        shared = {"OMP_NUM_THREADS": str(num_threads)} | os.environ | shared | {"TMPDIR": folder}
        processes = [
            subprocess.Popen([sys.executable, _CHILD, file], env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(num_processes)
        ]
        try:
            while any(process.poll() is None for process in processes):
                if any(process.poll() for process in processes):
                    break
                time.sleep(0.1)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return not any(process.returncode for process in processes)


def _options() -> argparse.ArgumentParser:
    num_gpus = torch.cuda.device_count()
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=new_file, required=True, help="JSON file for the results")
    parser.add_argument("--device", default="cuda" if num_gpus else "cpu", choices=("cuda", "cpu"))
    counts = [count for count in _COUNTS if count <= num_gpus] or [1 if num_gpus else 2]
    parser.add_argument("--ranks", type=int, nargs="+", default=counts, help="numbers of ranks, one GPU each")
    parser.add_argument(
        "--networks",
        type=_network,
        nargs="+",
        default=[_network(text) for text in (_ON_CUDA if num_gpus else ("resnet_small:32:32",))],
        help="MODEL:IMAGE_SIZE:BATCH, with the batch of a single rank; the most important first",
    )
    parser.add_argument("--rounds", type=int, default=8, help="blocks of steps of each run")
    parser.add_argument("--block-seconds", type=float, default=0.8, help="length of a block, in whole steps")
    parser.add_argument("--growths", type=int, default=2, help="growths of each growing run")
    parser.add_argument(
        "--arms", nargs="*", default=["late", "default"], choices=("late", "default"), help="runs besides off"
    )
    parser.add_argument("--budget-seconds", type=float, default=1800.0, help="start no cell after this time")
    parser.add_argument("--cell-seconds", type=float, default=180.0, help="kill a cell that takes longer")
    return parser


def _network(text: str) -> tuple[str, int, int]:
    model, image_size, batch_size = text.split(":")
    return model, int(image_size), int(batch_size)


if __name__ == "__main__":
    main()
