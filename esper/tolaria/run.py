"""A run that is open: its folder, journal, and everything that trains."""

from __future__ import annotations

import contextlib
import functools
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from esper import stopping, turns, urza
from esper.build import Parts, bus_tracker, parts
from esper.configs import TolariaConfig, derive_seed, torch_seed
from esper.configs.identity import checkpoints_folder, digest, outputs_folder, run_id, run_name
from esper.configs.recorded import recorded
from esper.contracts.events import Event, Notice
from esper.costs import Cost, count
from esper.data import Split
from esper.errors import ConfigError, WriteError
from esper.kasmina import MorphableModel, find_blocks
from esper.models import disable_inductor_layout_optimization
from esper.redact import redact
from esper.tezzeret.measure import set_compile_cache
from esper.tolaria.checkpoints.files import has_checkpoints
from esper.tolaria.checkpoints.writer import CheckpointWriter
from esper.tolaria.cuda_graph import capture_obstacle
from esper.tolaria.data_record import require_same_data
from esper.tolaria.ema import WeightEMA
from esper.tolaria.evaluate import Evaluation, begin_evaluation
from esper.tolaria.growth.consult import Growth
from esper.tolaria.growth.data import growth_data
from esper.tolaria.growth.lifecycle import Lifecycle
from esper.tolaria.library import with_library
from esper.tolaria.optim import build_optimizer
from esper.tolaria.plugin_record import changed_plugins
from esper.tolaria.ranks import Ranks
from esper.tolaria.run_folder import RunFolder, require_same_run
from esper.tolaria.schedule import learning_rate
from esper.tolaria.state import TrainingState
from esper.tolaria.step import TrainStep
from esper.tracking import Journal, TrackerThread, trackers, unused_variables
from esper.tracking.addresses import remember_address
from esper.tracking.files import SWEEP_FILE

if TYPE_CHECKING:
    from esper.tolaria.regional_compile import Regions

__all__ = ["Run", "open_run"]

_BUS_INTERVAL_S = 0.5
"""Seconds between publications on the bus."""


@dataclass(kw_only=True)
class Run:
    """Everything that a training uses; `close` releases it.

    Attributes:
        schedule: the host's learning rate so many steps ahead; 0: at the next step.
        last_read: epoch sums at the last log line, on the device.
        data_notices: what the user should know about changes of the data.
        ranks: only rank 0 writes in the run folder, saves checkpoints and reports to trackers; the others work in
            temporary folders.
    """

    config: TolariaConfig
    run_dir: Path
    log_dir: Path
    checkpoint_dir: Path
    folder: RunFolder
    journal: Journal
    parts: Parts
    model: MorphableModel
    optimizer: Optimizer
    schedule: Callable[[int], float]
    step: TrainStep
    checkpoint_writer: CheckpointWriter
    growth: Growth
    life: Lifecycle
    state: TrainingState
    last_read: Tensor
    outputs_dir: Path
    data_notices: Sequence[str]
    ranks: Ranks
    closing: contextlib.ExitStack

    @property
    def host_cost(self) -> Cost:
        """Parameters and MACs of the network before it grew."""
        return self.life.host_cost

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return self.parts.loader.num_batches

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training, as far as growth is known beforehand."""
        return self.life.budget.total_steps(self.state, self.life.image_macs)

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole training, the last one perhaps incomplete."""
        return -(-self.total_steps // self.steps_per_epoch)

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent."""
        return self.life.budget.is_spent(self.state, self.life.image_macs)

    def synchronize_ranks(self) -> None:
        """Broadcast rank 0's weights, and give each rank its own random numbers.

        Raises:
            RankError: ranks have different settings, data or networks.
        """
        ranks, config = self.ranks, self.config
        if ranks.size == 1:
            return
        splits = self.parts.splits
        values = {
            "configuration": digest(config),
            "epoch": self.state.epoch,
            "data": splits.fingerprint.digest,
            "images": [len(split) for split in (splits.train, splits.controller, splits.judge, splits.test)],
            "parameters": [(name, tuple(p.shape)) for name, p in self.model.named_parameters()],
        }
        ranks.require_equal("the run", values)
        ranks.broadcast([*self.model.parameters(), *self.model.buffers()])
        if not ranks.is_rank0:
            # The arguments stand like this since 0.1.0: the other order would change the random numbers.
            torch.manual_seed(
                derive_seed(ranks.rank + ranks.size * self.state.global_step, torch_seed(config.rng_seed))
            )

    def begin_validation(self) -> Evaluation:
        """Measure the controller split in the number format of training; on CUDA nothing waits for the device."""
        parts, captured = self.parts, self.step.captured_measure
        known = captured.obstacle if captured is not None else None
        with self.step.ema_weights(step=self.state.global_step), self.step.autocast():
            evaluation = begin_evaluation(
                self.model, parts.splits.controller, parts, self.ranks, captured_measure=captured
            )
        if captured is not None and captured.obstacle != known:
            self.warn(f"validation is slower, as it is not captured as a CUDA graph: {captured.obstacle}")
        return evaluation

    def evaluate_split(self, split: Split) -> tuple[float, dict[str, float]]:
        """Mean loss of a split in float32, and the task's metrics."""
        return begin_evaluation(self.model, split, self.parts, self.ranks).figures()

    def test(self) -> tuple[float, dict[str, float], dict[str, Any]]:
        """Mean loss and metrics of the test split, and the task's detail; the only use of that split in a run."""
        test = self.parts.splits.test
        return begin_evaluation(self.model, test, self.parts, self.ranks, with_detail=True).figures_and_detail()

    @property
    def written_to(self) -> list[Path]:
        """The folders that this run and the others of its sweep write to."""
        config, sweep_dir = self.config, self.run_dir.parent
        named = (
            config.checkpoint.checkpoint_dir,
            config.dataset.data_dir,
            config.logging.log_dir,
            config.storage.compile_cache_dir,
        )
        folders = [self.outputs_dir, *map(Path, filter(None, named))]
        return [*folders, sweep_dir] if (sweep_dir / SWEEP_FILE).exists() else folders

    def start_trackers(self) -> None:
        """Report the journal, from its beginning, to the configured trackers."""
        if not self.ranks.is_rank0:
            return
        tracking, started = self.config.tracking, []
        as_recorded = recorded(self.config)
        for address in (as_recorded["tracking"]["uri"], as_recorded["redis"]["url"]):
            remember_address(address)
        if unused := unused_variables(tracking, experiment_name=self.config.experiment_name):
            self.warn(f"set but not used, as the settings decide: {unused}")
        for tracker in trackers(tracking, run_dir=self.run_dir, outputs_dir=self.outputs_dir):
            if tracker.is_left_to_sync:
                later = f"the end of the sweep does, or `esper sync {shlex.quote(str(self.run_dir))}`"
                message = f"SLURM jobs do not log to {tracker.place}; {later}"
                self.emit(Notice, level="INFO", message=message)
                continue
            started.append((tracker, tracking.flush_interval_s))
        if self.config.bus == "redis":
            started.append((bus_tracker(self.config.redis, run_dir=self.run_dir), _BUS_INTERVAL_S))
        for tracker, interval_s in started:
            thread = TrackerThread(tracker, interval_s=interval_s, run_dir=self.run_dir, warn=self.warn)
            self.closing.callback(_close, thread)

    def finish_checkpoints(self) -> None:
        """Finish the checkpoints that are being written, and the writer's thread."""
        if problem := self.checkpoint_writer.close():
            with contextlib.suppress(WriteError):  # the journal cannot be written either, which was reported
                self.warn(problem)

    def close(self) -> None:
        """Finish the trackers, close the journal and unlock the run folder; safe to call twice."""
        self.closing.close()

    def emit(self, kind: type[Event], **fields: Any) -> None:
        """Write an event of the current step to the journal."""
        self.journal.write(kind(step=self.state.global_step, **fields))

    def warn(self, message: str) -> None:
        """Warn the user; the run continues."""
        self.emit(Notice, level="WARNING", message=redact(message))


def _close(thread: TrackerThread) -> None:
    with turns.paused():
        thread.close()


def open_run(
    config: TolariaConfig,
    *,
    run_dir: Path | None,
    state: TrainingState,
    listeners: Sequence[Callable[[Event], None]],
    ranks: Ranks | None = None,
    is_reopened: bool = False,
) -> Run:
    """Lock the run folder and build everything; on an error nothing stays open.

    A signal raises `Stopped`, unless the run is opened again during training, which stops at its next step.

    Raises:
        ConfigError, DataError, RunError: the configuration, the data or the folder cannot be used; the folder holds a
            run of other settings, or on other data.
    """
    ranks = ranks or Ranks()
    accumulate = config.optimization.accumulate
    if config.dataset.batch_size < ranks.size * accumulate:
        parts = f" in {accumulate} parts each (optimization.accumulate)" if accumulate > 1 else ""
        raise ConfigError(
            f"dataset.batch_size={config.dataset.batch_size}: {ranks.size} ranks share each batch{parts}; start fewer, "
            "or use a larger batch"
        )
    run_dir = (run_dir or Path("outputs", config.experiment_name, run_name(config, []))).absolute()
    checkpoints = checkpoints_folder(run_dir, checkpoint_dir=config.checkpoint.checkpoint_dir)
    outputs = outputs_folder(run_dir, experiment_name=config.experiment_name)
    with contextlib.ExitStack() as stack:
        if not ranks.is_rank0:
            run_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"esper-rank-{ranks.rank}-")))
        log_dir = Path((ranks.is_rank0 and config.logging.log_dir) or run_dir).absolute()
        folder = RunFolder(run_dir)
        stack.callback(folder.release)  # first: a signal may come as it is acquired
        folder.acquire()
        if ranks.is_rank0:
            require_same_run(config, run_dir)
        folder.mend()
        config = _with_library(config, run_dir=run_dir, outputs_dir=outputs, ranks=ranks)
        built = _parts(config, cache_dir=outputs / "cache", run_id=run_id(run_dir), ranks=ranks)
        stack.callback(built.close)
        found = built.splits.fingerprint
        data_notices = ranks.on_rank0(lambda: require_same_data(config, run_dir, lambda: found))
        data_notices += changed_plugins(run_dir, config.plugins) if has_checkpoints(checkpoints) else []
        journal = Journal(run_dir / "journal.jsonl", guard=folder.require_held)
        stack.callback(journal.close)
        for listener in listeners:
            journal.subscribe(listener)
        if not is_reopened:
            stopping.check()
        model = built.model.train()
        optimizer = build_optimizer(config.optimization, model)
        step = _step(config, built, optimizer, ranks)
        life = Lifecycle(
            config=config.morphogenetic,
            optimization=config.optimization,
            model=model,
            optimizer=optimizer,
            data=growth_data(built, state),
            step=step,
            journal=journal,
            state=state,
            rng_seed=config.rng_seed,
            host_cost=count(model.host, built.spec.inputs, dtype=built.spec.dtype),
        )
        schedule = functools.partial(_learning_rate, life)
        growth = Growth(life=life, tamiyo=built.tamiyo, schedule=schedule)
        writer = CheckpointWriter(
            checkpoints, keep=config.checkpoint.max_checkpoints, sync=journal.sync, guard=folder.require_held
        )
        run = Run(
            config=config,
            run_dir=run_dir,
            log_dir=log_dir,
            checkpoint_dir=writer.folder,
            folder=folder,
            journal=journal,
            parts=built,
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            step=step,
            checkpoint_writer=writer,
            growth=growth,
            life=life,
            state=state,
            last_read=step.sums.epoch.clone(),
            outputs_dir=outputs,
            data_notices=data_notices,
            ranks=ranks,
            closing=stack,
        )
        stack.callback(run.finish_checkpoints)
        stack.callback(step.invalidate)  # a CUDA graph must go before the communicator that it uses
        run.closing = stack.pop_all()
        return run


def _learning_rate(life: Lifecycle, steps_ahead: int) -> float:
    step = life.state.global_step + steps_ahead
    return learning_rate(life.optimization, step, budget=life.budget, spent=life.spent(steps_ahead))


def _with_library(config: TolariaConfig, *, run_dir: Path, outputs_dir: Path, ranks: Ranks) -> TolariaConfig:
    """See `with_library`; rank 0 reads the library and broadcasts it."""
    config, definitions = ranks.on_rank0(
        functools.partial(with_library, config, run_dir=run_dir, outputs_dir=outputs_dir)
    )
    for definition in definitions:
        urza.declare(definition)
    return config


def _parts(config: TolariaConfig, *, cache_dir: Path, run_id: str, ranks: Ranks) -> Parts:
    """Build the parts with this rank's shard of the batches; rank 0 goes first and writes the caches that all read."""
    device, rows = ranks.device(config.device), ranks.shard(config.dataset.batch_size)
    if not ranks.is_rank0:
        ranks.barrier()
    built = parts(config, cache_dir=cache_dir, run_id=run_id, device=device, rows=rows)
    if ranks.is_rank0:
        ranks.barrier()
    return built


def _step(config: TolariaConfig, built: Parts, optimizer: Optimizer, ranks: Ranks) -> TrainStep:
    mixed = built.device.type == "cuda" if config.mixed_precision is None else config.mixed_precision
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    torch.backends.cudnn.deterministic = not config.cudnn_benchmark
    decay = config.optimization.ema_decay
    return TrainStep(
        model=built.model,
        task=built.task,
        optimizer=optimizer,
        loader=built.loader,
        device=built.device,
        autocast_dtype=getattr(torch, config.autocast_dtype) if mixed else None,
        clip_norm=config.optimization.gradient_clip_norm,
        is_captured=capture_obstacle(config) is None,
        accumulate=config.optimization.accumulate,
        ema=WeightEMA(built.model, decay=decay) if decay is not None else None,
        regions=_regions(config, built.model, built.device) if config.compile_model else None,
        ranks=ranks,
        sync_batch_norm=config.ranks.sync_batch_norm,
    )


def _regions(config: TolariaConfig, model: MorphableModel, device: torch.device) -> Regions:
    from esper.tolaria.regional_compile import Regions  # lazily: it imports torch._dynamo

    set_compile_cache(config.storage)
    disable_inductor_layout_optimization(device)
    regions = Regions()
    try:
        blocks = list(find_blocks(model.host, config.model.target_layers))
    except ConfigError:
        if config.morphogenetic.enable_tamiyo:
            raise
        blocks = []  # without growth, no layer needs a name
    regions.add_host(model.host, blocks)
    return regions
