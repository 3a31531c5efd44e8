"""A storm of faults at random moments: real trainings are disturbed, repeated, and compared with undisturbed ones.

Each round draws a kind of fault, a training and a moment. Survived: the same command again ends with the same weights
to the bit, or what cannot go on is refused with one line. Lost is everything else: other weights, a traceback, a result
that is not there, a secret that was written, code that ran. A lost round's folder and seed are kept.

    python benchmarks/faults.py --minutes 30 --out faults.json [--kinds kill "full disk"] [--seed 7]

A full disk needs root, to mount a small file system; the bus needs redis-server.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import fault_inputs, fault_kinds
from benchmarks.fault_runs import Lost, Storm
from benchmarks.measuring import environment, table, write_json
from benchmarks.places import new_file

FAULTS: dict[str, Callable[[Storm], None]] = fault_kinds.FAULTS | fault_inputs.FAULTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Inject faults until the time is over, print the table, write the JSON file; returns 1 if any was lost."""
    options = _options().parse_args(arguments)
    kinds = [kind for kind in options.kinds or FAULTS if _is_possible(kind)]
    seeds = random.Random(options.seed)
    rows = {kind: {"kind": kind, "rounds": 0, "survived": 0, "lost": 0} for kind in kinds}
    lost: list[dict[str, Any]] = []
    until = time.monotonic() + 60 * options.minutes
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    storm = Storm(folder, random.Random())
    while time.monotonic() < until:
        for kind in seeds.sample(kinds, len(kinds)):
            if time.monotonic() >= until:
                break
            seed = seeds.randrange(2**32)
            reason = _round(storm, kind, seed)
            rows[kind]["rounds"] += 1
            rows[kind]["lost" if reason else "survived"] += 1
            if reason:
                lost.append({"kind": kind, "seed": seed, "reason": reason})
                reason += f"; folder {folder / str(storm.num_trainings)}"
            print(f"{kind:<28} seed {seed:<12} {reason or 'survived'}", flush=True)
    result = {"minutes": options.minutes, "seed": options.seed, "rows": list(rows.values()), "lost": lost}
    write_json(options.out, result)
    if not lost:
        shutil.rmtree(folder, ignore_errors=True)
    print(environment())
    print(table(list(rows.values())))
    return 1 if lost else 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=new_file, required=True, help="JSON file for the results")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the order of the faults and of each one's choices")
    parser.add_argument("--kinds", nargs="+", choices=tuple(FAULTS), default=None, help="only these kinds")
    return parser


def _is_possible(kind: str) -> bool:
    if kind == "full disk":
        return os.getuid() == 0
    return kind != "bus fails" or shutil.which("redis-server") is not None


def _round(storm: Storm, kind: str, seed: int) -> str:
    """One fault; returns why it was lost, or nothing."""
    storm.rng.seed(seed)
    try:
        FAULTS[kind](storm)
    except Lost as lost:
        return str(lost)
    return ""


if __name__ == "__main__":
    raise SystemExit(main())
