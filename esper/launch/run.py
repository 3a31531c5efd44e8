"""One run from start to end, for `esper-train`, `esper.fit` and the jobs of a sweep."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from esper import hanging, stopping, turns
from esper.configs import TolariaConfig
from esper.configs.identity import checkpoints_folder, digest, outputs_folder
from esper.console import Console
from esper.contracts.events import Event, GrowthUndone, Notice
from esper.contracts.metrics import headline_of
from esper.contracts.progress import Progress
from esper.data import fingerprint
from esper.errors import EsperError, RankError, RunError, WriteError
from esper.folders import left_as_it_was
from esper.launch.arms import resolve_arm
from esper.launch.dry_run import dry_run
from esper.launch.exits import error_line
from esper.launch.initial import resolve_initial, resolve_policy
from esper.launch.outcome import Outcome
from esper.launch.planned import resolve_plan
from esper.launch.registration import register, require_registry
from esper.terminal.display import Terminal
from esper.tolaria import TolariaService
from esper.tolaria.checkpoints.resume import rewind_target
from esper.tolaria.data_record import require_same_data
from esper.tolaria.memory import explained, is_out_of_memory
from esper.tolaria.plugin_record import changed_plugins
from esper.tolaria.ranks import Ranks, init_ranks
from esper.tolaria.run_folder import RunFolder, require_same_run
from esper.tracking import read
from esper.tracking.formatting import duration, metric
from esper.tracking.liveness import last_seen_s
from esper.tracking.mlflow_page import mlflow_links
from esper.tracking.tracker_thread import short_message
from esper.tracking.trackers import is_left_to_sync

__all__ = ["Outcome", "run"]

_NOTHING = {".lock", "train.log", "journal.jsonl"}
"""Files that are there before a run has begun."""
_LOG_COLUMNS = 120


def run(
    config: TolariaConfig,
    run_dir: Path,
    *,
    sibling: Callable[[str], Path] | None = None,
    output: TextIO | None = None,
) -> Outcome:
    """Train, resume, or show the result of a run that has finished before.

    Args:
        config: the run's configuration.
        run_dir: the run folder.
        sibling: gives the folder of the run that the same command makes with another arm of the comparison; see
            `resolve_arm`.
        output: where the run's lines are printed; None: stdout.

    Raises:
        EsperError: bad input, or the training failed.
        SystemExit: this rank failed, and another rank has reported the error; or a signal came before training.
    """
    run_dir = run_dir.absolute()
    with stopping.handled(), hanging.watched(lambda _status, _why: True):
        ranks = init_ranks()
        with _removed_without_a_run(run_dir) if ranks.is_rank0 else contextlib.nullcontext():
            return _reporting_failure(
                config, ranks, lambda: _run(config, run_dir, ranks, sibling=sibling, output=output)
            )


def _reporting_failure(config: TolariaConfig, ranks: Ranks, start: Callable[[], Outcome]) -> Outcome:
    """`start()`, whose failure one rank raises and the others end with."""
    try:
        return start()
    except Exception as failure:
        is_memory = not isinstance(failure, EsperError) and is_out_of_memory(failure)
        error = explained(failure, config) if is_memory else failure
        if isinstance(error, RankError):
            stopping.check()  # then the others were stopped too
        line, exit_code = error_line(error), error.exit_code if isinstance(error, EsperError) else 1
        if not ranks.report_failure(line):
            raise SystemExit(exit_code) from None
        if ranks.is_rank0 and is_memory:
            raise error from None
        if ranks.is_rank0:
            raise
        reported = RankError(f"rank {ranks.rank} of {ranks.size}: {line}")
        reported.exit_code = exit_code
        raise reported from error


def _run(
    config: TolariaConfig,
    run_dir: Path,
    ranks: Ranks,
    *,
    sibling: Callable[[str], Path] | None,
    output: TextIO | None,
) -> Outcome:
    if config.dry_run:
        report = dry_run(resolve_plan(config, run_dir=run_dir), run_dir)
        if ranks.is_rank0:
            step = f"{1000 * report.step_seconds:.3g} ms a step, excluding evaluation, growth, checkpointing"
            print("\n".join([*report.lines, f"time       about {duration(report.seconds)}: {step}"]))  # noqa: T201
        return Outcome(exit_code=0, metric=None, result=None, run_dir=run_dir)
    ranks.require_equal("the run", {"configuration": digest(config), "folder": run_dir.name})
    ranks.on_rank0(lambda: require_same_run(config, run_dir))
    config = ranks.on_rank0(lambda: _resolved(config, run_dir, sibling=sibling))
    status, mended = ranks.on_rank0(lambda: _previous_status(run_dir, fresh=config.fresh))
    checkpoints = checkpoints_folder(run_dir, checkpoint_dir=config.checkpoint.checkpoint_dir)
    is_finished = status.get("status") == "finished" and not rewind_target(config.checkpoint, checkpoints)
    notices: list[str] = []
    if is_finished:
        find = functools.partial(fingerprint, config.dataset)
        notices = ranks.on_rank0(lambda: require_same_data(config, run_dir, find, is_shown=True))
        notices += changed_plugins(run_dir, config.plugins)
    else:
        ranks.on_rank0(lambda: require_registry(config.tracking))
    if not ranks.is_rank0:
        return _outcome(0, status["result"], run_dir) if is_finished else asyncio.run(_train(config, run_dir, []))
    with contextlib.ExitStack() as stack:
        console = None if output is None else Console(file=output, width=_LOG_COLUMNS)
        terminal = stack.enter_context(Terminal(level=config.logging.log_level, console=console))
        stack.callback(lambda: terminal.files(_files(config, run_dir)))  # at the end: MLflow's address of the run
        if is_finished:
            for message in mended:
                terminal.show(Notice(step=0, level="WARNING", message=message))
            terminal.replay(_journal_of(run_dir))
            _register(config, run_dir, [terminal])
            for message in (*notices, _finished_before(run_dir, status["result"])):
                terminal.show(Notice(step=0, level="INFO", message=message))
            return _outcome(0, status["result"], run_dir)
        log_dir = Path(config.logging.log_dir or run_dir)
        if log_dir != run_dir:
            stack.enter_context(left_as_it_was(log_dir, file="train.log"))
        log_dir.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(_log_file(log_dir / "train.log"))
        log = stack.enter_context(
            Terminal(level=config.logging.log_level, console=Console(file=file, width=_LOG_COLUMNS))
        )
        outcome = asyncio.run(_train(config, run_dir, [terminal, log]))
        if outcome.result is not None:
            _register(config, run_dir, [terminal, log])
        return outcome


def _resolved(config: TolariaConfig, run_dir: Path, *, sibling: Callable[[str], Path] | None) -> TolariaConfig:
    """The configuration with what other runs and files decide."""
    config = resolve_plan(config, run_dir=run_dir)
    config = resolve_arm(config, run_dir=run_dir, sibling=sibling)
    return resolve_policy(resolve_initial(config, run_dir=run_dir), run_dir=run_dir)


def _previous_status(run_dir: Path, *, fresh: bool) -> tuple[dict[str, Any], list[str]]:
    """Status of the run that the folder holds, {} if none, and which damaged files were set aside.

    With `fresh`, the folder is moved aside first.
    """
    folder = RunFolder(run_dir)
    try:
        folder.acquire()
        if fresh:
            folder.set_aside()
        mended = folder.mend()
        return folder.status(), mended
    finally:
        folder.release()


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[TextIO]:
    """The open log; lines that a full disk refuses are lost, and the journal says so."""
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            file.close()


async def _train(config: TolariaConfig, run_dir: Path, terminals: list[Terminal]) -> Outcome:
    def reload(event: Event) -> None:
        if event.kind == GrowthUndone.kind:  # the journal was cut
            for terminal in terminals:
                terminal.replay(read(run_dir / "journal.jsonl"))

    def on_progress(progress: Progress) -> None:
        for terminal in terminals:
            terminal.progress(progress)

    listeners = [reload, *(terminal.show for terminal in terminals)]
    service = TolariaService(
        config, run_dir=run_dir, listeners=listeners, on_progress=on_progress if terminals else None
    )
    if stopping.is_handled():
        service.setup_signal_handlers()
    log = Path(config.logging.log_dir or run_dir) / "train.log" if init_ranks().is_rank0 else None
    with hanging.watched(functools.partial(_last_words, service, run_dir), log=log):
        return await _run_service(service, run_dir, terminals)


async def _run_service(service: TolariaService, run_dir: Path, terminals: list[Terminal]) -> Outcome:
    try:
        await service.start()
        try:
            for terminal in terminals:  # the earlier part of a resumed run; the training task has not begun yet
                terminal.replay(read(run_dir / "journal.jsonl"))
            await service.run_training()
        except WriteError:  # a full disk, or a folder that may be another process's
            raise
        except BaseException:
            with contextlib.suppress(EsperError):  # the cause counts
                _write_page(run_dir)
            raise
        for terminal in terminals:
            terminal.progress(Progress(doing="writing the report"))
        _write_page(run_dir)
    finally:
        await service.stop()
    assert service.trainer is not None
    if service.trainer.result is not None:
        return _outcome(0, service.trainer.result, run_dir)
    return _outcome(128 + (service.signal_number or signal.SIGTERM), None, run_dir)


def _register(config: TolariaConfig, run_dir: Path, terminals: list[Terminal]) -> None:
    """Register the network, if asked; a failure is told, and costs nothing else."""
    name = config.tracking.register
    if name is None:
        return

    def tell(level: str, message: str) -> None:
        for terminal in terminals:
            terminal.show(Notice(step=0, level=level, message=f"tracking.register={name}: {message}"))

    if is_left_to_sync(config.tracking):
        tell("INFO", "the end of the sweep registers it, or, after esper sync, the same command outside of SLURM")
        return
    hanging.beat(expected_s=hanging.CLOSE_S)  # other runs of this process wait meanwhile
    for terminal in terminals:
        terminal.progress(Progress(doing="registering the model"))
    try:
        register(run_dir, config.tracking)
    except Exception as error:  # MLflow and its database drivers raise many types
        tell("WARNING", f"not registered ({short_message(error)}); the same command tries again")


def _last_words(service: TolariaService, run_dir: Path, status: str, why: str) -> bool:
    """Record that this process is ended because it hangs; see `hanging.LastWords`."""
    ranks = init_ranks()
    if ranks.is_rank0 and RunFolder(run_dir).status().get("status") == "running":
        assert service.trainer is not None
        with contextlib.suppress(EsperError):  # a full disk, or a folder that is gone
            RunFolder(run_dir).set_status(status, reason=why)  # first: the journal's lock may be held by what hangs
            service.trainer.end(status, why)
    elif ranks.is_rank0 and _is_empty(run_dir):
        shutil.rmtree(run_dir, ignore_errors=True)
    return ranks.report_failure(why)


def _write_page(run_dir: Path) -> None:
    """Write the report, before the trackers close, which upload it."""
    if init_ranks().is_rank0:
        hanging.beat(expected_s=hanging.CLOSE_S)  # several runs of a process may do so at once
        with turns.paused():
            from esper.report import run_page  # imports Matplotlib

            run_page.write(run_dir)


@contextlib.contextmanager
def _removed_without_a_run(run_dir: Path) -> Iterator[None]:
    """Context manager: on an error or a signal, remove a run folder in which no run has begun."""
    with left_as_it_was(run_dir):
        try:
            yield
        except BaseException:
            _remove_empty(run_dir)
            raise


def _remove_empty(run_dir: Path) -> None:
    if not run_dir.exists() or not _is_empty(run_dir):
        return
    folder = RunFolder(run_dir)
    try:
        folder.acquire()
    except RunError:  # the error was that another process uses the folder
        return
    if _is_empty(run_dir):
        shutil.rmtree(run_dir)
    folder.release()


def _is_empty(run_dir: Path) -> bool:
    return not run_dir.exists() or {entry.name for entry in run_dir.iterdir()} <= _NOTHING


def _journal_of(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The events of a run that has finished."""
    try:
        yield from read(run_dir / "journal.jsonl")
    except FileNotFoundError:
        raise RunError(
            f"{run_dir / 'journal.jsonl'} is missing, without which the finished run cannot be shown; restore it, or "
            f"train anew with fresh=true, which keeps this folder as {run_dir.name}.oldN"
        ) from None


def _finished_before(run_dir: Path, result: dict[str, Any]) -> str:
    """When the run finished and with what, and how to train it anew."""
    when = datetime.fromtimestamp(last_seen_s(run_dir)).astimezone()
    headline = headline_of(result)
    figure = metric(result[f"test_{headline.name}"], headline)
    return (
        f"this run finished before, on {when:%Y-%m-%d at %H:%M}: test {headline.label} {figure}; to train it anew, add "
        f"fresh=true, which keeps this one as {run_dir.name}.oldN"
    )


def _outcome(exit_code: int, result: dict[str, Any] | None, run_dir: Path) -> Outcome:
    metric = result[f"val_{headline_of(result).name}"] if result else None
    return Outcome(exit_code=exit_code, metric=metric, result=result, run_dir=run_dir)


def _files(config: TolariaConfig, run_dir: Path) -> dict[str, str]:
    """Where the run's files are, for the last lines of the terminal's output."""
    paths = {
        "run": run_dir,
        "report": run_dir / "report.html",
        "checkpoints": checkpoints_folder(run_dir, checkpoint_dir=config.checkpoint.checkpoint_dir),
    }
    files = {name: shlex.quote(str(path)) for name, path in paths.items()}
    if config.tracking.name in ("mlflow", "both"):
        outputs = outputs_folder(run_dir, experiment_name=config.experiment_name)
        files |= mlflow_links(config.tracking, run_dir=run_dir, outputs_dir=outputs)
    if config.tracking.name in ("wandb", "both"):
        files["wandb"] = f"project {config.tracking.wandb_project}, group {config.experiment_name}"
    return files
