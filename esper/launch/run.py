"""One run from start to end: the path of the command and of `esper.fit`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from esper.configs import MorphogeneticConfig, TolariaConfig
from esper.configs.identity import checkpoints_folder, digest, outputs_folder
from esper.errors import EsperError, RankError, RunError
from esper.launch.arms import rehearsable, settle
from esper.launch.exits import line_of
from esper.terminal.display import Terminal
from esper.tolaria import TolariaService, TolariaTrainer
from esper.tolaria.checkpoints.resume import rewind_target
from esper.tolaria.dry_run import Rehearsal
from esper.tolaria.ranks import Ranks, joined
from esper.tolaria.run_folder import RunFolder
from esper.tracking import read, tracking_uri
from esper.tracking.formatting import duration

__all__ = ["Outcome", "rehearse", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        exit_code: 0 finished, 130 Ctrl-C, 143 SIGTERM.
        metric: validation accuracy at the end, in [0, 1]; None unless finished.
        result: figures of the finished run; see `contracts.events.RunEnded`.
        run_dir: where everything is.
    """

    exit_code: int
    metric: float | None
    result: dict[str, Any] | None
    run_dir: Path


def run(config: TolariaConfig, run_dir: Path, *, sibling: Callable[[str], Path] | None = None) -> Outcome:
    """Train, or show the result of a run that has finished before.

    Args:
        config: what to train.
        run_dir: the run's folder.
        sibling: the folder of the same command's run with another arm of the comparison; see `arms.settle`.

    Raises:
        EsperError: bad input, or the training failed.
    """
    ranks = joined()
    try:
        return _run(config, run_dir.absolute(), ranks, sibling=sibling)
    except Exception as error:
        line, code = line_of(error), error.exit_code if isinstance(error, EsperError) else 1
        if not ranks.is_first_to_fail(line):  # another process has told
            raise SystemExit(code) from None
        if ranks.is_first:
            raise
        told = RankError(f"process {ranks.rank} of {ranks.size}: {line}")
        told.exit_code = code
        raise told from error


def _run(config: TolariaConfig, run_dir: Path, ranks: Ranks, *, sibling: Callable[[str], Path] | None) -> Outcome:
    if config.dry_run:
        found = rehearse(config, run_dir)
        time = (
            f"time       about {duration(found.seconds)}: steps of {1000 * found.step_seconds:.3g} ms, without the rest"
        )
        if ranks.is_first:
            print("\n".join([*found.lines, time]))  # noqa: T201
        return Outcome(exit_code=0, metric=None, result=None, run_dir=run_dir)
    try:
        ranks.require_same("the run", {"configuration": digest(config), "folder": run_dir.name})
        config = ranks.first(lambda: settle(config, run_dir=run_dir, sibling=sibling))
    except EsperError:
        if ranks.is_first:
            _forget(run_dir)
        raise
    status = ranks.first(lambda: _take_over(run_dir, fresh=config.fresh))
    checkpoints = checkpoints_folder(run_dir, checkpoint_dir=config.checkpoint.checkpoint_dir)
    is_done = status.get("status") == "finished" and not rewind_target(config.checkpoint, checkpoints)
    if not ranks.is_first:
        return _outcome(0, status["result"], run_dir) if is_done else asyncio.run(_train(config, run_dir, []))
    with contextlib.ExitStack() as stack:
        terminal = stack.enter_context(Terminal(level=config.logging.log_level))
        terminal.files(_files(config, run_dir))
        if is_done:
            terminal.replay(read(run_dir / "journal.jsonl"))
            return _outcome(0, status["result"], run_dir)
        log_dir = Path(config.logging.log_dir or run_dir)
        log_dir.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context((log_dir / "train.log").open("a", encoding="utf-8"))
        log = stack.enter_context(Terminal(level=config.logging.log_level, console=Console(file=file, width=120)))
        return asyncio.run(_train(config, run_dir, [terminal, log]))


def rehearse(config: TolariaConfig, run_dir: Path) -> Rehearsal:
    """Build everything, do a few steps, grow by force; leave nothing behind.

    Args:
        config: what would be trained.
        run_dir: where; from there the blueprint library is found.

    Raises:
        EsperError: bad input, or it failed.
    """
    outputs = outputs_folder(run_dir.absolute(), experiment_name=config.experiment_name)
    database = config.database.url or f"sqlite:///{outputs / 'urza.db'}"
    found = dataclasses.replace(config, database=dataclasses.replace(config.database, url=database))
    return asyncio.run(_rehearse(rehearsable(found)))


def _take_over(run_dir: Path, *, fresh: bool) -> dict[str, Any]:
    """How the run in a folder stands; with `fresh`, what is there is set aside first."""
    folder = RunFolder(run_dir)
    folder.acquire()
    try:
        if fresh:
            folder.set_aside()
        return folder.status()
    finally:
        folder.release()


async def _train(config: TolariaConfig, run_dir: Path, terminals: list[Terminal]) -> Outcome:
    service = TolariaService(config, run_dir=run_dir, listeners=[terminal.show for terminal in terminals])
    if threading.current_thread() is threading.main_thread():  # signals reach no other
        service.setup_signal_handlers()
    try:
        try:
            await service.start()
            for terminal in terminals:  # what a resumed run did before; the training's task has not begun yet
                terminal.replay(read(run_dir / "journal.jsonl"))
            await service.run_training()
        finally:
            if not joined().is_first:
                pass
            elif (run_dir / "journal.jsonl").exists():
                from esper.report import run_page  # Matplotlib is only needed now

                run_page.write(run_dir)  # before the tracker closes: it takes the page along
            else:
                _forget(run_dir)
    finally:
        await service.stop()
    assert service.trainer is not None
    if service.trainer.result is not None:
        return _outcome(0, service.trainer.result, run_dir)
    return _outcome(128 + (service.signal_number or signal.SIGTERM), None, run_dir)


def _forget(run_dir: Path) -> None:
    """Remove a folder in which nothing began: bad input that shows only while building leaves nothing behind."""
    folder = RunFolder(run_dir)
    try:
        folder.acquire()
    except RunError:  # another process is at work there: that was the error
        return
    if {entry.name for entry in run_dir.iterdir()} <= {".lock", "train.log"}:
        shutil.rmtree(run_dir)
        with contextlib.suppress(OSError):  # others lie beside it
            run_dir.parent.rmdir()
            run_dir.parents[1].rmdir()
    folder.release()


def _outcome(exit_code: int, result: dict[str, Any] | None, run_dir: Path) -> Outcome:
    metric = result["val_accuracy"] if result else None
    return Outcome(exit_code=exit_code, metric=metric, result=result, run_dir=run_dir)


def _files(config: TolariaConfig, run_dir: Path) -> dict[str, str]:
    """What lies where, for the end of the terminal's output."""
    files = {
        "run": str(run_dir),
        "report": str(run_dir / "report.html"),
        "checkpoints": str(checkpoints_folder(run_dir, checkpoint_dir=config.checkpoint.checkpoint_dir)),
    }
    if config.tracking.name in ("mlflow", "both"):
        outputs = outputs_folder(run_dir, experiment_name=config.experiment_name)
        files["mlflow"] = f"mlflow ui --backend-store-uri {tracking_uri(config.tracking, outputs_dir=outputs)}"
    if config.tracking.name in ("wandb", "both"):
        files["wandb"] = f"project {config.tracking.wandb_project}, group {config.experiment_name}"
    return files


def _alone(config: MorphogeneticConfig) -> MorphogeneticConfig:
    """Growth without a shared Tamiyo, whose policy need not be here; a rehearsal does not ask it."""
    if config.tamiyo == "local":
        return config
    return dataclasses.replace(
        config, tamiyo="local", policy="heuristic" if config.policy == "learned" else config.policy
    )


async def _rehearse(config: TolariaConfig) -> Rehearsal:
    with tempfile.TemporaryDirectory(prefix="esper-dry-run-") as folder:
        rehearsal = dataclasses.replace(
            config,
            logging=dataclasses.replace(config.logging, log_dir=None),
            checkpoint=dataclasses.replace(config.checkpoint, checkpoint_dir=None, auto_resume=False),
            tracking=dataclasses.replace(config.tracking, name="none"),
            bus="memory",
            morphogenetic=_alone(config.morphogenetic),
        )
        trainer = TolariaTrainer(rehearsal, run_dir=Path(folder))
        try:
            await trainer.initialize()
            return await trainer.rehearse()
        finally:
            await trainer.shutdown()
