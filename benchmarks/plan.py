"""How good are plans? Plans each cell with `esper plan`, trains its options, and measures regret and coverage.

    python benchmarks/plan.py --data FOLDER --out FILE.jsonl [--cells NAME,…] [--shard 0/4] [--minutes 9] [OVERRIDE ...]
    python benchmarks/plan.py --out FILE.jsonl --report

Cells are listed in `plan_cells.py`. A cell is planned with the budget, of which the pilots spend a part. Then the fixed
choices (host longer, a size in between, the final size, growing at 30 %) get the whole budget, and the recommended
option what the pilots left, with other seeds than the pilots'. The same command again goes on where the last one
ended: rows that are in FILE are not trained again, and runs that were cut off are resumed, if outputs/ is still there.
Several processes share the cells by --shard and write to the same FILE; up to twelve of them share a GPU.

With --minutes 9 or so, the cells can be done in several sessions; a plan, or a run, that has begun by then is finished.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import json
import math
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.growing import read_rows
from benchmarks.plan_cells import CELLS, SHARE, Cell
from benchmarks.plan_report import report
from esper import cli, fit
from esper.configs.compose import compose
from esper.files import decode
from esper.planning.family import Family, read_family
from esper.planning.observations import Choice
from esper.planning.record import SCHEMA, PlanRecord
from esper.planning.trainings import overrides_of
from esper.tracking import environment

__all__ = ["main"]

Row = dict[str, Any]

_QUIET = ("tracking=none", "logging.log_level=ERROR", "checkpoint.save_best=false", "logging.log_interval=1000")
_ENVIRONMENT = ("gpu", "torch", "python", "esper", "git_commit")
_PILOT_SEED, _NUM_SEEDS, _PILOT_SHARE = 300, 3, 0.15
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes after which nothing else begins."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, train and write rows; the exit code is 1 if something failed."""
    options = _options().parse_intermixed_args(arguments)
    options.out = options.out.resolve()
    if options.report:
        print(report(read_rows(options.out)))
        return
    if options.data is None:
        raise SystemExit("--data FOLDER: where are the datasets? See plan_cells.py for what it must hold")
    options.data = options.data.resolve()
    options.outputs.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.touch()
    deadline = time.time() + 60 * options.minutes
    num_failed = 0
    with contextlib.chdir(options.outputs):
        for cell in _chosen(options):
            for job in _jobs(cell, options):
                if time.time() > deadline:
                    print("time limit: the same command goes on", flush=True)
                    raise SystemExit(1 if num_failed else 0)
                if not _do(job, options):
                    num_failed += 1
                    break  # what follows needs the plan, or would fail in the same way
    print(report(read_rows(options.out)))
    raise SystemExit(1 if num_failed else 0)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{_estimates()}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="for every cell, such as smaller networks")
    parser.add_argument(
        "--data", type=Path, help="folder with cifar10/, cifar100/ (train/CLASS/*, …), python-packages/"
    )
    parser.add_argument("--out", type=Path, required=True, help="rows are read from this file and added to it")
    parser.add_argument("--cells", type=lambda text: text.split(","), help=f"of {', '.join(c.name for c in CELLS)}")
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="I/N", help="every N-th cell from the I-th on")
    parser.add_argument("--seeds", type=int, default=_NUM_SEEDS, help="runs of each option (default: %(default)s)")
    parser.add_argument("--epochs", type=float, help="budget of every cell instead of its own; for trying it out")
    parser.add_argument("--pilot-share", type=float, default=_PILOT_SHARE)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no run begins after so many minutes")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--outputs", type=Path, default=Path(), help="parent of outputs/ (default: here)")
    parser.add_argument("--report", action="store_true", help="only print the tables of FILE")
    return parser


def _estimates() -> str:
    """How long each cell takes, for the help."""
    seconds = {cell.name: cell.gpu_s(pilot_share=_PILOT_SHARE, num_seeds=_NUM_SEEDS) for cell in CELLS}
    lines = [f"  {name:22}{value:6.0f}" for name, value in {**seconds, "all": sum(seconds.values())}.items()]
    return "\n".join(["Estimated GPU seconds of a whole cell on an H200 that several processes share:", *lines])


def _shard(text: str) -> tuple[int, int]:
    index, number = map(int, text.split("/"))
    if not 0 <= index < number:
        raise argparse.ArgumentTypeError(f"{text}: allowed are 0/N to N-1/N")
    return index, number


def _chosen(options: argparse.Namespace) -> list[Cell]:
    names = options.cells or [cell.name for cell in CELLS]
    if unknown := set(names) - {cell.name for cell in CELLS}:
        raise SystemExit(f"--cells {sorted(unknown)[0]}: allowed are {', '.join(cell.name for cell in CELLS)}")
    index, number = options.shard
    return [cell for cell in CELLS if cell.name in names][index::number]


# --- jobs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row: a cell's plan, or a run of one option.

    Attributes:
        cell: the cell.
        role: `plan`, `fixed` or `recommended`.
        name: of the option; empty for a plan.
        seed: `rng_seed`.
        choice: what is trained.
        macs: its budget.
    """

    cell: Cell
    role: str
    name: str = ""
    seed: int = _PILOT_SEED
    choice: Choice | None = None
    macs: float = 0.0

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells its row from others."""
        return self.cell.name, self.role, self.name, self.seed

    def __str__(self) -> str:
        return f"{self.cell.name}: {self.role} {self.name} seed {self.seed}"


def _jobs(cell: Cell, options: argparse.Namespace) -> Iterator[Job]:
    """The cell's plan and, once it is there, its runs, one seed after the other; those that are not done."""
    plan = Job(cell=cell, role="plan")
    if plan.key not in _done(options.out):
        yield plan
    row = next(row for row in read_rows(options.out) if _key(row) == plan.key and "error" not in row)
    made = _plan_of(row)
    budget = made.plan.question.macs
    assert budget is not None
    fixed = {size.name: Choice(size=size.name) for size in made.plan.question.sizes}
    fixed["grown"] = Choice(size=made.plan.question.final.name, share=SHARE)
    for seed in range(_PILOT_SEED + 1, _PILOT_SEED + 1 + options.seeds):
        jobs = [
            *(Job(cell=cell, role="fixed", name=name, seed=seed, choice=choice, macs=budget)
              for name, choice in fixed.items()),
            Job(cell=cell, role="recommended", name="plan", seed=seed, choice=made.plan.recommended,
                macs=made.plan.chosen.macs),
        ]  # fmt: skip
        yield from (job for job in jobs if job.key not in _done(options.out))


def _do(job: Job, options: argparse.Namespace) -> bool:
    """Plan or train, and write the row; returns whether it succeeded."""
    began, row = time.time(), {"cell": job.cell.name, "role": job.role, "name": job.name, "seed": job.seed}
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            row |= _plan(job.cell, options) if job.choice is None else _train(job, job.choice, options)
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code in _STOPPED:
            raise
        traceback.print_exc()
        sys.stderr.write(output.getvalue())
        row |= {"error": f"{type(error).__name__}: {error}"}
    known = environment()
    row |= {"wall_s": time.time() - began, "at": time.time()} | {name: known[name] for name in _ENVIRONMENT}
    with options.out.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(row) + "\n")
    print(
        f"{job}: {row.get('error') or row.get('reason') or row['result']['test_loss']} ({row['wall_s']:.0f} s)",
        flush=True,
    )
    return "error" not in row


def _given(cell: Cell, options: argparse.Namespace, *, experiment: str) -> list[str]:
    own = [one.replace("DATA", str(options.data)) for one in cell.family.overrides]
    named = [f"device={options.device}", f"rng_seed={_PILOT_SEED}", f"experiment_name={experiment}"]
    return [*own, *_QUIET, *options.overrides, *named]


def _plan(cell: Cell, options: argparse.Namespace) -> Row:
    given = _given(cell, options, experiment=f"plan-{cell.name}")
    budget = ["--epochs", f"{options.epochs or cell.epochs:g}", "--pilot-share", f"{options.pilot_share:g}"]
    try:
        cli.main(["plan", *given, *budget])
    except SystemExit as end:
        if end.code:
            raise
    content = json.loads((Path(compose(given).hydra.run.dir).parent / "plan.json").read_text())
    return {"reason": content["plan"]["reason"], "plan": content}


def _plan_of(row: Mapping[str, Any]) -> PlanRecord:
    return decode(json.dumps(row["plan"]), SCHEMA, where="the row of a plan")


def _train(job: Job, choice: Choice, options: argparse.Namespace) -> Row:
    given = _given(job.cell, options, experiment=f"plan-{job.cell.name}-runs")
    known: Family = read_family(given, fractions=None)
    known.write_recipe()
    overrides = overrides_of(choice, macs=job.macs, seed=job.seed, given=given, known=known, trunk=None)
    outcome = fit(*overrides, run_dir=known.folder / f"{job.name}-{job.seed}")
    if outcome.result is None:
        raise SystemExit(outcome.exit_code)
    result = {name: value for name, value in outcome.result.items() if isinstance(value, int | float)}
    return {"size": choice.size, "share": choice.share, "max_macs": job.macs, "result": result}


# --- rows -------------------------------------------------------------------------------------------------------------


def _key(row: Mapping[str, Any]) -> tuple[str, str, str, int]:
    return row["cell"], row["role"], row["name"], row["seed"]


def _done(path: Path) -> set[tuple[str, str, str, int]]:
    return {_key(row) for row in read_rows(path) if "error" not in row}


if __name__ == "__main__":
    main()
