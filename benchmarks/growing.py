"""Does growing by copies pay? Trains the cells of a study in parallel, several to a GPU, and writes a row for each.

    python benchmarks/growing.py STUDY --data FOLDER --out FILE.jsonl [--seeds 200-211] [--minutes 9] [OVERRIDE ...]

A cell is an ordinary run of Esper: one arm of a study (`growing_studies.py` has the tables; `claims,small` are two),
with one budget and one seed. All arms of a comparison spend the same compute, that of E epochs of the final network
(gpt: of so many million bytes through it), and end at the step that is nearest to it. Workers share one queue. A cell
whose row is in FILE is skipped, and one that was trained there for another study gets a copy of its row. What still
runs after --minutes is stopped, and goes on next time if its run folder in OUTPUTS/growing is still there. With
--last-call, for a machine whose files will be gone, a worker takes no cell that, judging by the rows of like cells,
would not end in time. `capacity` starts from runs in OUTPUTS/growing and needs them as long as it is not complete.
Tables: growing_report.py. The text of `gpt`: corpus.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import workers
from benchmarks.growing_cells import EXPERIMENT, Cell, plan
from benchmarks.growing_studies import STUDIES
from benchmarks.places import new_file, new_folder
from benchmarks.workers import FAILED, Workers, append, locked, reserved
from esper.errors import EsperError
from esper.tracking import environment, read

__all__ = ["Queue", "Row", "estimate", "main", "read_rows"]

Row = dict[str, Any]

_KEYS = ("study", "arm", "seed")
_ROOT = Path(__file__).resolve().parent.parent
_MARGIN = 1.1
"""Factor on the estimated time of a cell."""
_POLL_S = 2.0
"""How often a worker looks whether the trunk that it waits for has finished."""
_RESULT = (
    "val_accuracy", "val_loss", "test_accuracy", "test_loss", "total_macs", "growth_macs", "num_macs_before",
    "num_macs", "num_parameters", "val_bits_per_byte", "test_bits_per_byte",
)  # fmt: skip
_COMPILER = ("esper.tolaria.regional_compile", "torch._inductor.compile_fx")
"""Modules that take seconds to import, of studies with `compile_model=true`."""
_ENVIRONMENT = ("gpu", "torch", "python", "esper", "git_commit")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the cells; the exit code is 1 if one failed or a worker died, 2 on bad input."""
    started = time.time()
    options = _options().parse_intermixed_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.touch()
    (options.outputs / EXPERIMENT / ".locks").mkdir(parents=True, exist_ok=True)
    imports = _COMPILER if any(map(_is_compiled, options.studies)) else ()
    with Workers(device=options.device, per_gpu=options.workers_per_gpu, imports=imports) as processes:
        try:
            cells = [cell for study in options.studies for cell in _plan(study, options)]
        except EsperError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None
        num_pending = len(_pending(cells, read_rows(options.out)))
        print(f"{time.time() - started:6.0f} s  {len(cells)} cells, {num_pending} to do", flush=True)
        queue = Queue(
            cells=cells,
            out=options.out,
            locks=options.outputs / EXPERIMENT / ".locks",
            device=options.device,
            started=started,
            deadline=started + 60 * options.minutes,
            is_last_call=options.last_call,
        )
        if num_pending:
            processes.work(queue.run_next, deadline=queue.deadline)
    rows = read_rows(options.out)
    failed = [row for row in rows if "error" in row and row["at"] >= started]
    num_done = len(cells) - len(_pending(cells, rows))
    print(f"{time.time() - started:6.0f} s  {num_done} of {len(cells)} cells done, {len(failed)} failed", flush=True)
    raise SystemExit(1 if failed or processes.num_dead else 0)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=_studies, metavar="STUDY", help=f"one or several of {','.join(STUDIES)}")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="for every cell, such as other widths")
    parser.add_argument(
        "--data", type=Path, required=True, help="DATA/train/CLASS/*, DATA/test/CLASS/*; gpt: train, val, test"
    )
    parser.add_argument("--out", type=new_file, required=True, help="rows are read from this file and added to it")
    parser.add_argument("--seeds", type=_numbers, default=_numbers("200-211"), help="200-211 (default), or 200,203")
    parser.add_argument(
        "--budgets", type=_budgets, help="in epochs of the final network; gpt: MB. Default: the study's"
    )
    parser.add_argument("--workers-per-gpu", type=int, default=4, help="with --device=cpu: workers (default: 4)")
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit (default: 9)")
    parser.add_argument("--last-call", action="store_true", help="begin nothing that would not end in time")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--outputs", type=new_folder, default=Path("outputs"), help="of the runs (default: outputs)")
    return parser


def _studies(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in STUDIES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: allowed are {', '.join(STUDIES)}")
    return names


def _numbers(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(number) for number in text.split(",")]


def _budgets(text: str) -> list[float]:
    return [int(number) if number.isdigit() else float(number) for number in text.split(",")]


def _is_compiled(study: str) -> bool:
    return any("compile_model=true" in comparison.recipe for comparison in STUDIES[study].values())


def _plan(study: str, options: argparse.Namespace) -> list[Cell]:
    return plan(
        study,
        data=options.data.resolve(),
        outputs=options.outputs.resolve(),
        seeds=options.seeds,
        budgets=options.budgets,
        extra=options.overrides,
    )


# --- rows -------------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, in order; a last line that was cut off is left out."""
    rows = workers.read_rows(path, _KEYS)
    for row in rows:
        if "epochs" in row:  # what older rows call it
            row["budget"] = row.pop("epochs")
    return rows


def _place(row: Row) -> tuple[str, str, float, int]:
    return row["study"], row["arm"], row["budget"], row["seed"]


def _pending(cells: Sequence[Cell], rows: Sequence[Row]) -> list[Cell]:
    """The cells without a row; a trunk that other cells need must also still be there."""
    done = {(*_place(row), row["digest"]) for row in rows if "error" not in row}
    places = {cell.place for cell in cells if (*cell.place, cell.digest) not in done}
    needed = {cell.after for cell in cells if cell.place in places}
    return [cell for cell in cells if cell.place in places or (cell.run_dir in needed and not _has_trunk(cell.run_dir))]


def _has_trunk(run_dir: Path) -> bool:
    """Whether a finished run kept its trunk."""
    return any(run_dir.glob("checkpoints/trunk-*")) and "finished" in (run_dir / "status.json").read_text()


def estimate(cell: Cell, rows: Sequence[Row]) -> float:
    """Seconds that a cell will take, judging by the most similar finished ones of its study; 0 if there are none."""
    known = [row for row in rows if row["study"] == cell.study and "seconds" in row]

    def difference(row: Row) -> tuple[bool, float]:
        return row["arm"] != cell.arm, abs(math.log(row["budget"] / cell.budget))

    nearest = min(map(difference, known), default=None)
    alike = [row["seconds"] * cell.budget / row["budget"] for row in known if difference(row) == nearest]
    return _MARGIN * max(alike, default=0.0)


# --- workers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Queue:
    """The cells, which workers take in order; a cell that runs is locked, until its process ends at the latest.

    Attributes:
        cells: all of them.
        out: file of the rows.
        locks: folder of the lock files.
        device: cuda or cpu.
        started, deadline: Unix time.
        is_last_call: whether to begin nothing that would not end in time.
    """

    cells: Sequence[Cell]
    out: Path
    locks: Path
    device: str
    started: float
    deadline: float
    is_last_call: bool

    def run_next(self) -> bool:
        """Run the first cell that can run now; returns whether there may be another later.

        Raises:
            SystemExit: the cell failed, which its row says.
        """
        waits = False
        for cell in self._candidates():
            with reserved(self.locks / cell.digest) as is_free:
                if not is_free:  # runs elsewhere
                    waits = waits or any(other.after == cell.run_dir for other in self.cells)
                elif cell in self._candidates():  # not finished in the meantime
                    return self._run(cell)
        if waits:
            time.sleep(_POLL_S)
        return waits

    def _candidates(self) -> list[Cell]:
        """The cells that can begin now."""
        with locked(self.out):
            rows = read_rows(self.out)
            by_digest = {row["digest"]: row for row in rows if "error" not in row}
            for cell in _pending(self.cells, rows):
                if (found := by_digest.get(cell.digest)) and _place(found) != cell.place:  # trained for another study
                    rows.append(found | _described(cell))
                    append(self.out, rows[-1])
        failed = {row["digest"] for row in rows if "error" in row and row["at"] >= self.started}
        left = self.deadline - time.time()
        return [
            cell
            for cell in _pending(self.cells, rows)
            if cell.digest not in failed
            and (cell.after is None or _has_trunk(cell.after))
            and left > (estimate(cell, rows) if self.is_last_call else 0.0)
        ]

    def _run(self, cell: Cell) -> bool:
        from esper import fit

        began = time.time()
        row = _described(cell)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                outcome = fit(*cell.overrides, f"device={self.device}", run_dir=cell.run_dir)
        except Exception as error:
            traceback.print_exc()
            row |= {"error": f"{type(error).__name__}: {error}"}
        else:
            if outcome.result is None:  # stopped at the time limit
                return False
            row |= {name: outcome.result[name] for name in _RESULT if name in outcome.result} | _steps(cell.run_dir)
            row["train_seconds"] = outcome.result["seconds"]
        known = environment()
        seconds = max(time.time() - began, row.get("train_seconds", 0.0))  # it may have begun in an earlier call
        row |= {"seconds": seconds, "at": time.time()} | {name: known[name] for name in _ENVIRONMENT}
        with locked(self.out):
            append(self.out, row)
        print(f"{time.time() - self.started:6.0f} s  {cell}: {_shown(row, cell)}", flush=True)
        if "error" in row:
            raise SystemExit(FAILED)  # a CUDA error would make every later cell of this process fail
        return True


def _shown(row: Row, cell: Cell) -> str:
    """The result of a cell in a line."""
    if "error" in row:
        return str(row["error"])
    accuracy = f"accuracy {row['test_accuracy']:.4f}, " if "test_accuracy" in row else ""
    speed = row["steps"] * cell.per_step / row["train_seconds"]
    return (
        f"{accuracy}loss {row['test_loss']:.4f} (val {row['val_loss']:.4f}); {row['seconds']:.0f} s, of which training "
        f"{row['train_seconds']:.0f} s: {row['steps']} steps, {speed / 1e3:,.0f} thousand {cell.noun}/s"
    )


def _described(cell: Cell) -> Row:
    """The part of a row that is known beforehand, without this machine's folders."""
    outputs = str(cell.run_dir.parents[1])
    overrides = [one.replace(outputs, "outputs").replace(f"{_ROOT}/", "") for one in cell.overrides]
    return {
        "study": cell.study,
        "arm": cell.arm,
        "budget": cell.budget,
        "seed": cell.seed,
        "digest": cell.digest,
        "max_macs": cell.max_macs,
        "overrides": [one for one in overrides if not one.startswith("dataset.data_dir=")],
    }


def _steps(run_dir: Path) -> Row:
    """Optimizer steps of the run, and those at which the network became larger."""
    events = list(read(run_dir / "journal.jsonl"))
    grown = {
        event["step"]
        for event in events
        if event["kind"] == "surgery" and event["committed"] and event["num_macs_after"] != event["num_macs_before"]
    }
    return {"steps": max(event["step"] for event in events), "growth_steps": sorted(grown)}


if __name__ == "__main__":
    main()
