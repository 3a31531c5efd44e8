"""How good are plans? Plans each cell with `esper plan`, trains its options, and measures regret and coverage.

    python benchmarks/plan.py --data FOLDER --out FILE.jsonl [--cells NAME,…] [--minutes 9] [OVERRIDE ...]
    python benchmarks/plan.py --out FILE.jsonl --report

Cells are listed in `plan_cells.py`. A cell is planned with the budget, of which the pilots spend a part. The fixed
choices (host longer, a size in between, the final size, growing at 30 %) get the whole budget, and the recommended
option what the pilots left, with other seeds than the pilots'. Workers share one queue of plans and runs, plans first.
What has a row in FILE is not trained again. At the time limit, what still runs is saved and stopped; the same command
goes on with it, if outputs/ is still there. `plan.sh` does all that on a machine without a package index.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.places import new_file, new_folder
from benchmarks.plan_cells import CELLS, SHARE, WORKERS_PER_GPU, Cell
from benchmarks.plan_report import report
from benchmarks.workers import FAILED, Workers, append, locked, read_rows, reserved
from esper import cli, fit
from esper.configs.compose import compose
from esper.errors import EsperError
from esper.files import decode
from esper.planning.family import Family, read_family
from esper.planning.observations import Choice
from esper.planning.record import SCHEMA, PlanRecord
from esper.planning.trainings import overrides_of
from esper.tracking import environment

__all__ = ["Job", "Queue", "main"]

Row = dict[str, Any]
Key = tuple[str, str, str, int]

_QUIET = (
    "tracking=none", "logging.log_level=ERROR", "logging.log_interval=1000", "logging.report_images=false",
    "checkpoint.save_best=false", "checkpoint.save_interval=1000000",
)  # fmt: skip
_ENVIRONMENT = ("gpu", "torch", "python", "esper", "git_commit")
_KEYS = ("cell", "role", "name", "seed")
"""What tells rows apart."""
_PILOT_SEED, _NUM_SEEDS, _PILOT_SHARE = 300, 3, 0.15
_POLL_S, _LEAST_S = 2.0, 10.0
"""How often a worker looks whether a plan is there; nothing begins when less than so many seconds are left."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, train and write rows; the exit code is 1 if something failed or a worker died, 2 on bad input."""
    started = time.time()
    options = _options().parse_intermixed_args(arguments)
    if options.report:
        print(report(read_rows(options.out, _KEYS)))
        return
    if options.data is None:
        raise SystemExit("--data FOLDER: where are the datasets? It must hold cifar10-jpeg, fashion-mnist and so on")
    options.out = options.out.resolve()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.touch()
    (options.outputs / ".locks").mkdir(parents=True, exist_ok=True)
    queue = Queue(
        cells=_chosen(options),
        given=_overrides(options),
        epochs=options.epochs,
        num_seeds=options.seeds,
        pilot_share=options.pilot_share,
        out=options.out,
        outputs=options.outputs.resolve(),
        started=started,
        deadline=started + 60 * options.minutes,
    )
    num_pending, num_dead = len(queue.pending()), 0
    print(f"{time.time() - started:6.0f} s  {num_pending} plans and runs to do", flush=True)
    if num_pending:
        with Workers(device=options.device, per_gpu=options.workers_per_gpu, folder=queue.outputs) as workers:
            try:
                queue.decode()
            except EsperError as error:
                print(f"error: {error}", file=sys.stderr)
                raise SystemExit(error.exit_code) from None
            workers.work(queue.run_next, deadline=queue.deadline)
            num_dead = workers.num_dead
    rows = read_rows(options.out, _KEYS)
    failed = [row for row in rows if "error" in row and row["at"] >= started]
    print(f"{time.time() - started:6.0f} s  {len(queue.pending())} left, {len(failed)} failed", flush=True)
    print(report(rows))
    raise SystemExit(1 if failed or num_dead else 0)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{_estimates()}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="for every cell, such as smaller networks")
    parser.add_argument("--data", type=Path, help="folder with cifar10-jpeg/, fashion-mnist/ and python-packages/")
    parser.add_argument("--out", type=new_file, required=True, help="rows are read from this file and added to it")
    parser.add_argument("--cells", type=lambda text: text.split(","), help=f"of {', '.join(c.name for c in CELLS)}")
    parser.add_argument("--seeds", type=int, default=_NUM_SEEDS, help="runs of each option (default: %(default)s)")
    parser.add_argument("--epochs", type=float, help="budget of every cell instead of its own; for trying it out")
    parser.add_argument("--pilot-share", type=float, default=_PILOT_SHARE)
    parser.add_argument("--workers-per-gpu", type=int, default=WORKERS_PER_GPU, help="with --device=cpu: workers")
    parser.add_argument("--minutes", type=float, default=math.inf, help="time limit")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--outputs", type=new_folder, default=Path(), help="parent of outputs/ (default: here)")
    parser.add_argument("--report", action="store_true", help="only print the tables of FILE")
    return parser


def _estimates() -> str:
    """How long each cell takes, for the help."""
    seconds = {cell.name: cell.gpu_s(pilot_share=_PILOT_SHARE, num_seeds=_NUM_SEEDS) for cell in CELLS}
    lines = [f"  {name:22}{value:6.0f}" for name, value in {**seconds, "all": sum(seconds.values())}.items()]
    return "\n".join(["Estimated GPU seconds of a whole cell on an H200 that twelve processes share:", *lines])


def _chosen(options: argparse.Namespace) -> list[Cell]:
    """The cells, those that take longest first: they would keep few workers busy at the end."""
    names = options.cells or [cell.name for cell in CELLS]
    if unknown := set(names) - {cell.name for cell in CELLS}:
        raise SystemExit(f"--cells {sorted(unknown)[0]}: allowed are {', '.join(cell.name for cell in CELLS)}")
    cells = [cell for cell in CELLS if cell.name in names]
    return sorted(cells, key=lambda cell: -cell.epochs * cell.family.epoch_s)


def _overrides(options: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """Of every cell's trainings, by name."""
    return {
        cell.name: (
            *(one.replace("DATA", str(options.data.resolve())) for one in cell.family.overrides),
            *_QUIET,
            *options.overrides,
            f"device={options.device}",
        )
        for cell in _chosen(options)
    }


# --- jobs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row: a cell's plan, or a run of one option.

    Attributes:
        cell: the cell.
        role: `plan`, `fixed` or `recommended`.
        name: of the option; empty for a plan.
        seed: `rng_seed`.
    """

    cell: Cell
    role: str
    name: str = ""
    seed: int = _PILOT_SEED

    @property
    def key(self) -> Key:
        """What tells its row from others."""
        return self.cell.name, self.role, self.name, self.seed

    def __str__(self) -> str:
        return " ".join([f"{self.cell.name}:", self.role, self.name, f"seed {self.seed}"])


_FIXED = {name: Choice(size=name) for name in ("host", "between", "final")} | {
    "grown": Choice(size="final", share=SHARE)
}


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Plans and runs of some cells, which workers take in order; what runs is locked, until its process ends at latest.

    Attributes:
        cells: in the order in which they are done.
        given: overrides of each cell, by name.
        epochs: budget of every cell; None: its own.
        num_seeds: runs of each option.
        pilot_share: of the budget.
        out: file of the rows.
        outputs: working directory, the parent of outputs/.
        started, deadline: Unix time.
    """

    cells: Sequence[Cell]
    given: Mapping[str, tuple[str, ...]]
    epochs: float | None
    num_seeds: int
    pilot_share: float
    out: Path
    outputs: Path
    started: float
    deadline: float

    def experiment(self, cell: Cell) -> str:
        """Name of the experiment that a cell's pilots belong to."""
        return f"plan-{cell.name}"

    def overrides(self, cell: Cell, *, experiment: str) -> list[str]:
        """Overrides of a cell's trainings in an experiment."""
        return [*self.given[cell.name], f"rng_seed={_PILOT_SEED}", f"experiment_name={experiment}"]

    def pending(self) -> list[Job]:
        """What has no row yet, in order: plans, then cell by cell what is recommended and the fixed choices."""
        seeds = range(_PILOT_SEED + 1, _PILOT_SEED + 1 + self.num_seeds)
        jobs = [Job(cell=cell, role="plan") for cell in self.cells]
        for cell in self.cells:
            jobs += [Job(cell=cell, role="recommended", name="plan", seed=seed) for seed in seeds]
            jobs += [Job(cell=cell, role="fixed", name=name, seed=seed) for seed in seeds for name in _FIXED]
        done = {_key(row) for row in self._rows() if "error" not in row}
        return [job for job in jobs if job.key not in done]

    def decode(self) -> None:
        """Read the data of what is pending, unless an earlier call has: they are cached then, before workers need them.

        Raises:
            EsperError: they cannot be read, or a configuration is wrong.
        """
        cells = {job.cell.family.name: job.cell for job in self.pending()}
        for name, cell in cells.items():
            marker = self.outputs / ".locks" / f"decoded-{name}"
            if marker.exists():
                continue
            with contextlib.chdir(self.outputs):
                read_family(self.overrides(cell, experiment=self.experiment(cell)), fractions=None)
            marker.touch()

    def run_next(self) -> bool:
        """Do the first job that can be done now; returns whether there may be another later.

        Raises:
            SystemExit: it failed, which its row says.
        """
        ready, is_waiting = self._ready()
        for job in ready:
            with reserved(self.outputs / ".locks" / "-".join(map(str, job.key))) as is_free:
                if is_free and job in self._ready()[0]:  # neither runs elsewhere nor has finished in the meantime
                    return self._do(job)
        if is_waiting:
            time.sleep(_POLL_S)
        return is_waiting

    def _rows(self) -> list[Row]:
        with locked(self.out):
            return read_rows(self.out, _KEYS)

    def _ready(self) -> tuple[list[Job], bool]:
        """What can begin, and whether something else waits for its plan."""
        rows, pending = self._rows(), self.pending()
        failed = {_key(row) for row in rows if "error" in row and row["at"] >= self.started}
        planned = {row["cell"] for row in rows if row["role"] == "plan" and "error" not in row}
        if time.time() > self.deadline - _LEAST_S:
            return [], False
        open_jobs = [job for job in pending if job.key not in failed]
        ready = [job for job in open_jobs if job.role != "recommended" or job.cell.name in planned]
        hopeless = {name for name, role, *_ in failed if role == "plan"}
        return ready, any(job not in ready and job.cell.name not in hopeless for job in open_jobs)

    def _do(self, job: Job) -> bool:
        """Plan or train, and write the row; returns False if it was stopped at the time limit."""
        began, row = time.time(), {"cell": job.cell.name, "role": job.role, "name": job.name, "seed": job.seed}
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                found = self._plan(job.cell) if job.role == "plan" else self._train(job)
        except Exception as error:
            traceback.print_exc()
            sys.stderr.write(output.getvalue())
            row |= {"error": f"{type(error).__name__}: {error}"}
        else:
            if found is None:
                return False
            row |= found
        known = environment()
        row |= {"wall_s": time.time() - began, "at": time.time()} | {name: known[name] for name in _ENVIRONMENT}
        with locked(self.out):
            append(self.out, row)
        shown = row.get("error") or row.get("reason") or f"loss {row['result']['test_loss']:.4f}"
        print(f"{time.time() - self.started:6.0f} s  {job}: {shown} ({row['wall_s']:.0f} s)", flush=True)
        if "error" in row:
            raise SystemExit(FAILED)  # a CUDA error would make all that follows in this process fail
        return True

    def _plan(self, cell: Cell) -> Row | None:
        given = self.overrides(cell, experiment=self.experiment(cell))
        budget = ["--epochs", f"{self.epochs or cell.epochs:g}", "--pilot-share", f"{self.pilot_share:g}"]
        try:
            cli.main(["plan", *given, *budget])
        except SystemExit as end:
            if isinstance(end.code, int) and end.code > 128:  # a signal
                return None
            if end.code:
                raise RuntimeError(f"esper plan: exit code {end.code}") from None
        content = json.loads((Path(compose(given).hydra.run.dir).parent / "plan.json").read_text())
        return {"reason": content["plan"]["reason"], "plan": content}

    def _train(self, job: Job) -> Row | None:
        given = self.overrides(job.cell, experiment=f"{self.experiment(job.cell)}-runs")
        known: Family = read_family(given, fractions=None)
        known.write_recipe()
        if job.role == "fixed":
            choice, macs = _FIXED[job.name], (self.epochs or job.cell.epochs) * known.final.size.macs_per_epoch
        else:
            plan = _plan_of(self._rows(), job.cell).plan
            choice, macs = plan.recommended, plan.chosen.macs
        overrides = overrides_of(choice, macs=macs, seed=job.seed, given=given, known=known, trunk=None)
        outcome = fit(*overrides, run_dir=known.folder / f"{job.name}-{job.seed}")
        if outcome.result is None:  # stopped
            return None
        result = {name: value for name, value in outcome.result.items() if isinstance(value, int | float)}
        return {"size": choice.size, "share": choice.share, "max_macs": macs, "result": result}


# --- rows -------------------------------------------------------------------------------------------------------------


def _key(row: Mapping[str, Any]) -> Key:
    cell, role, name, seed = (row[key] for key in _KEYS)
    return cell, role, name, seed


def _plan_of(rows: Sequence[Row], cell: Cell) -> PlanRecord:
    row = next(row for row in rows if (row["cell"], row["role"]) == (cell.name, "plan") and "error" not in row)
    return decode(json.dumps(row["plan"]), SCHEMA, where="the row of a plan")


if __name__ == "__main__":
    main()
