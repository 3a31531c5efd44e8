"""The processes of `scaling.py`: all ranks measure the cells of a plan one by one."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import esper.data.sources.synthetic
from benchmarks.measuring import Ratio, paired_ratio, write_json
from benchmarks.scaling_growth import gathered, growing_sites, grown
from benchmarks.stepping import LateBuckets, configuration, opened, own_stream, timed_steps, train_steps, wait
from esper.configs import MorphogeneticConfig
from esper.contracts.events import Event
from esper.tolaria.ranks import Ranks, init_ranks
from esper.tolaria.run import Run

__all__ = ["Cell", "Plan", "read_cells"]

T = TypeVar("T")

_WARMUP_STEPS = 20
_MIN_ROUNDS = 2
_MIN_IMAGES = 1280
_LARGE_IMAGE = 128
_NEVER = 10**6  # epochs
_PARTING_SECONDS = 30.0
_ARMS = {
    "off": MorphogeneticConfig(enable_tamiyo=False),
    "late": MorphogeneticConfig(enable_tamiyo=False),  # one sum of all gradients, after the backward pass
    "default": MorphogeneticConfig(),
    "growing": MorphogeneticConfig(policy="never", holding_epochs=_NEVER),  # scores as default does, grows on command
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement.

    Attributes:
        kind: "per rank" (each rank has the full batch), "global" (the ranks share it), or "growth" (as "per rank").
        batch_size: images in a step of a single rank.
    """

    kind: str
    model: str
    image_size: int
    batch_size: int
    ranks: int

    @property
    def name(self) -> str:
        """Unique name."""
        return f"{self.model}, {self.image_size} px, {self.kind}, {self.ranks} ranks"

    @property
    def together(self) -> int:
        """Images in a step of all ranks."""
        return self.batch_size if self.kind == "global" else self.batch_size * self.ranks

    @property
    def num_images(self) -> int:
        """Synthetic images: enough that ends of epochs, with their new shuffle order, are negligible."""
        num_batches = 4 if self.image_size >= _LARGE_IMAGE else 20
        return max(_MIN_IMAGES, num_batches * self.together * 10 // 9 + 10)  # a tenth is held out


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Cells for one set of processes; `deadline` is in seconds since 1970."""

    out: str
    device: str
    deadline: float
    cell_seconds: float
    rounds: int
    block_seconds: float
    growths: int
    arms: list[str]
    cells: list[Cell]


def main(path: str) -> None:
    """Measure all cells; on any failure the process exits at once, and its parent kills the others."""
    given = json.loads(Path(path).read_text())
    plan = Plan(**given | {"cells": [Cell(**cell) for cell in given["cells"]]})
    # Runs with equally many images share them: making large ones takes seconds.
    esper.data.sources.synthetic.make_synthetic = functools.cache(esper.data.sources.synthetic.make_synthetic)
    faulthandler.dump_traceback_later(plan.cell_seconds, exit=True)
    with _failing_at_once():
        ranks = init_ranks()
        ranks.device(plan.device)
        if plan.device != "cpu":
            own_stream()
        for cell in plan.cells:
            if not ranks.on_rank0(lambda: time.time() < plan.deadline):
                break
            faulthandler.dump_traceback_later(plan.cell_seconds, exit=True)
            _note(plan, ranks, cell, {"status": "begun"})
            started = time.monotonic()
            found = _measured(cell, plan, ranks)
            _note(plan, ranks, cell, {"status": "done", "took_s": time.monotonic() - started, **found})
    faulthandler.dump_traceback_later(_PARTING_SECONDS, exit=True)


@contextlib.contextmanager
def _failing_at_once() -> Iterator[None]:
    """Exit the process on an error without closing anything: closing could deadlock with the other ranks."""
    try:
        yield
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def read_cells(out: Path) -> list[dict[str, Any]]:
    """The cells of a results file."""
    return list(json.loads(out.read_text())["cells"])


def _note(plan: Plan, ranks: Ranks, cell: Cell, found: dict[str, Any]) -> None:
    if ranks.is_rank0:
        others = [other for other in read_cells(Path(plan.out)) if other["name"] != cell.name]
        write_json(Path(plan.out), {"cells": [*others, {"name": cell.name, **asdict(cell), **found}]})


def _measured(cell: Cell, plan: Plan, ranks: Ranks) -> dict[str, Any]:
    # In all ranks at the same time; opening a run would do it rank by rank.
    esper.data.sources.synthetic.make_synthetic(image_size=cell.image_size, num_examples=cell.num_images)
    try:
        return _growth(cell, plan, ranks) if cell.kind == "growth" else _speed(cell, plan, ranks)
    finally:
        gc.collect()
        if plan.device == "cuda":
            torch.cuda.empty_cache()


# --- speed ------------------------------------------------------------------------------------------------------------


def _speed(cell: Cell, plan: Plan, ranks: Ranks) -> dict[str, Any]:
    """Images per second of each arm by round, on one rank, on all, and on one with a rank's share of a global batch."""
    arms = [
        (arm, who)
        for arm in ("off", *plan.arms)
        for who in _who(ranks)
        if (arm, who) != ("late", "alone") and (arm, cell.kind) != ("default", "global")
    ]
    if cell.kind == "global" and ranks.size > 1:
        arms.append(("off", "share"))
    speeds: dict[tuple[str, str], list[float]] = {arm: [] for arm in arms}
    memory, runs, num_steps = {}, dict[tuple[str, str], Run](), dict[tuple[str, str], int]()
    with _runs(ranks) as open_:
        for arm in arms:
            run, memory[arm] = _opened(open_, cell, plan, ranks, *arm)
            if run is not None:
                runs[arm] = run
                num_steps[arm] = _steps_in_a_block(run, plan.block_seconds)
        for number in range(plan.rounds):
            if number >= _MIN_ROUNDS and not ranks.on_rank0(lambda: time.time() < plan.deadline):
                break
            turn = number % len(arms)
            for arm in [*arms[turn:], *arms[:turn]]:
                ranks.barrier()
                if arm in runs:
                    seconds = timed_steps(runs[arm], num_steps[arm])
                    speeds[arm].append(num_steps[arm] * runs[arm].config.dataset.batch_size / seconds)
        assert all(not run.model.recipe for run in runs.values()), "a module has grown: the seeds are not dormant"
    return {
        "images_per_s": _nested(speeds),
        "memory": _nested(memory),
        "efficiency": {
            arm: _share(speeds[arm, "together"], speeds["off" if arm == "late" else arm, "alone"], ranks.size)
            for arm, who in arms
            if who == "together" and ranks.is_rank0
        },
        "default_to_off": {
            who: paired_ratio(speeds[arm, who], speeds["off", who])
            for arm, who in arms
            if arm == "default" and ranks.is_rank0
        },
        "off_to_late": paired_ratio(speeds["off", "together"], speeds["late", "together"])
        if ("late", "together") in arms and ranks.is_rank0
        else None,
        "share_to_alone": paired_ratio(speeds["off", "share"], speeds["off", "alone"])
        if ("off", "share") in arms and ranks.is_rank0
        else None,
    }


def _steps_in_a_block(run: Run, block_seconds: float) -> int:
    """Steps of a block, equal on all ranks."""
    step_s = timed_steps(run, 5) / 5
    return run.ranks.on_rank0(lambda: max(1, round(block_seconds / step_s)))


def _share(together: list[float], alone: list[float], num: int) -> Ratio:
    """Efficiency: speed on all ranks, divided by their number and by the speed on one rank."""
    ratio = paired_ratio(together, alone)
    low, high = (None if end is None else end / num for end in (ratio.low, ratio.high))
    return Ratio(ratio.mean / num, low, high, ratio.n)


# --- growth -----------------------------------------------------------------------------------------------------------


def _growth(cell: Cell, plan: Plan, ranks: Ranks) -> dict[str, Any]:
    """Grow on one rank, then on all. The first growth of a process includes the libraries' choice of algorithms."""
    memory, growths = {}, {}
    with _runs(ranks) as open_:
        for who in _who(ranks):
            events: list[Event] = []
            run, memory["growing", who] = _opened(open_, cell, plan, ranks, "growing", who, listener=events.append)
            if run is None:
                continue
            before = _reset_peak(plan)
            sites = growing_sites(run, plan.growths)
            growths[who] = [grown(run, site, events=events) for site in sites]
            memory["growing, on top", who] = gathered(run, _peak_since(before))
    return {"growths": growths, "memory": _nested(memory)}


# --- runs -------------------------------------------------------------------------------------------------------------


def _who(ranks: Ranks) -> tuple[str, ...]:
    return ("alone", "together") if ranks.size > 1 else ("alone",)


@contextlib.contextmanager
def _runs(ranks: Ranks) -> Iterator[tuple[contextlib.ExitStack, Path]]:
    """Exit stack and folder of runs, which are closed after a barrier."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scaling-")))
        with _failing_at_once():  # before the runs are closed
            yield stack, folder
            ranks.barrier()


def _opened(
    open_: tuple[contextlib.ExitStack, Path],
    cell: Cell,
    plan: Plan,
    ranks: Ranks,
    arm: str,
    who: str,
    *,
    listener: Callable[[Event], None] | None = None,
) -> tuple[Run | None, list[dict[str, int] | None]]:
    """A warmed-up run, or None if only rank 0 trains; and the peak memory of each of its ranks."""
    stack, folder = open_
    if who != "together" and not ranks.is_rank0:
        return None, []
    batch_sizes = {"alone": cell.batch_size, "together": cell.together, "share": cell.together // ranks.size}
    config = configuration(
        model=cell.model,
        batch_size=batch_sizes[who],
        num_examples=cell.num_images,
        image_size=cell.image_size,
        device=plan.device,
        morphogenetic=_ARMS[arm],
    )
    before = _reset_peak(plan)
    listeners = [listener] if listener else []
    mine = ranks if who == "together" else None
    run = stack.enter_context(opened(config, folder / f"{arm}-{who}", listeners=listeners, ranks=mine))
    run.synchronize_ranks()
    if arm == "late" and run.step.gradients is not None:
        run.step.gradients = LateBuckets(run.model, run.ranks)
        run.step.gradients.bucket_bytes = run.step.gradients.outer_bytes = sys.maxsize
    train_steps(run, _WARMUP_STEPS)
    wait(run)
    run.step.invalidate()
    _reset_peak(plan)  # excludes the peak of choosing algorithms, which only the first run has
    train_steps(run, _WARMUP_STEPS)
    wait(run)
    return run, gathered(run, _peak_since(before))


def _reset_peak(plan: Plan) -> tuple[int, int] | None:
    """Reset peak memory; returns the bytes allocated and reserved, or None on a CPU."""
    if plan.device != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def _peak_since(before: tuple[int, int] | None) -> dict[str, int] | None:
    if before is None:
        return None
    allocated, reserved = before
    return {
        "allocated_bytes": torch.cuda.max_memory_allocated() - allocated,
        "reserved_bytes": torch.cuda.max_memory_reserved() - reserved,
    }


def _nested(found: dict[tuple[str, str], T]) -> dict[str, dict[str, T]]:
    """Nest keys of two parts, for JSON."""
    return {arm: {who: value for (other, who), value in found.items() if other == arm} for arm, _ in found}


if __name__ == "__main__":
    main(sys.argv[1])
