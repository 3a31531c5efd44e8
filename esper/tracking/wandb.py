"""Report runs to Weights & Biases from their journals. The package is imported when a run is first reported."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from esper.configs import TrackingConfig
from esper.errors import RunError
from esper.files import decoder, json_object, read_json, write_atomically
from esper.redact import without_credentials
from esper.tracking.history import History
from esper.tracking.metrics import files, module_summaries, points

__all__ = ["WandbRun"]

# Defaults where the user set nothing. W&B's own: print into the live display, prompt for a key, send error reports.
_VARIABLES = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
_INIT_S, _FINISH_S = 10, 10
"""Timeouts of connecting to the server, and of the last upload, in seconds."""
_NEVER = -1
_STATE = decoder(json_object("State", {"run_id": str, "step": int, "status": str, "is_offline": bool}))


class WandbRun:
    """One run in W&B, updated from the events of its journal, from the first event on.

    W&B's step is the optimizer step. All values of one step form one row, which W&B accepts once. A row is logged when
    a later step follows or the run has finished; until then, a resumed run may add to it. Online, the server knows the
    last step it has. Offline, that step is kept in `wandb.json` in the run folder, with the run's id, and is written
    before the rows are logged: a kill in between loses rows, but never duplicates them. Of two judgements at one step,
    the row has the last; the summary has both.

    A lock lets one process at a time report a run. Every method may raise any error of W&B; after that the object can
    only be closed.

    Args:
        config: project and entity.
        run_dir: folder of the run; W&B writes into `wandb` in it.

    Attributes:
        num_logged: points that were new to W&B.
        history: the events ingested so far.
    """

    def __init__(self, config: TrackingConfig, *, run_dir: Path) -> None:
        self.num_logged = 0
        self.history = History()
        self._config = config
        self._run_dir = run_dir
        self._lock = FileLock(run_dir / ".wandb.lock")
        self._run: Any = None
        self._last_logged: int | None = None  # last step whose row W&B is known to have
        self._rows: dict[int, dict[str, float]] = {}  # by step: rows that W&B may not have

    def ingest(self, events: Iterable[dict[str, Any]]) -> None:
        """Report the next events.

        Raises:
            RunError: another process is reporting this run.
        """
        for event in events:
            self.history.add(event)
            for point in points(event):
                row = self._rows.setdefault(event["step"], {})
                row[point.key] = point.value
                row["_timestamp"] = point.time_ms / 1000  # of the measurement, not of this call
                if point.key.startswith("epoch/"):
                    row["epoch"] = point.step
        if self._last_logged is None:
            self._last_logged = self._last_complete()
        self._send(before=self.history.step)

    def finish(self) -> None:
        """Log the last row if the run has finished, set the status, and upload files of the run folder."""
        if self.history.started is None:
            return
        ended = self.history.ended or {"status": "killed", "reason": ""}
        is_finished = ended["status"] == "finished"
        self._send(before=self.history.step + is_finished)
        if self._run is None:
            if self._load_state()["status"] == ended["status"]:
                return
            self._attach(self.history.started)
        self._run.summary.update({"status": ended["status"], "reason": ended["reason"]})
        for path in (self._run_dir / name for name in files(self._config)):
            if path.is_file():
                self._run.save(path, base_path=self._run_dir, policy="now")
        run, self._run = self._run, None
        run.finish(exit_code=0 if is_finished else 1)
        self._save_state(status=ended["status"])

    def close(self) -> None:
        """Release the lock; safe to call twice."""
        run, self._run = self._run, None
        try:
            if run is not None:
                run.finish(exit_code=1)
        finally:
            self._lock.release()

    def _send(self, *, before: int) -> None:
        """Log the rows of earlier steps that W&B does not have."""
        assert self._last_logged is not None
        if all(step >= before or step <= self._last_logged for step in self._rows):
            return
        if self._run is None:
            assert self.history.started is not None
            self._attach(self.history.started)
        rows = {step: self._rows.pop(step) for step in list(self._rows) if step < before}
        # A server may have more rows than wandb.json says.
        new = {step: row for step, row in rows.items() if step > self._last_logged}
        if new:
            self._last_logged = max(new)
            self._save_state(status="running")
        for step, row in new.items():
            self._run.log(row, step=step, commit=True)
            self.num_logged += len(row.keys() - {"epoch", "_timestamp"})
        self._run.summary.update(module_summaries(self.history))

    def _attach(self, started: Mapping[str, Any]) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"{self._run_dir} is being reported by another process; wait for it") from None
        state = self._load_state()
        wandb = _import_wandb()
        try:
            is_described = state["status"] != "" and (self._is_offline() or not state["is_offline"])
            self._run = self._init(wandb, started, run_id=state["run_id"], is_described=is_described)
        except Exception:
            # W&B's service would keep the failed run and refuse to create it later.
            wandb.teardown()
            raise
        self._run.define_metric("epoch/*", step_metric="epoch")
        self._last_logged = state["step"] if self._run.offline else self._run.starting_step - 1
        self._save_state(status="running")

    def _init(self, wandb: Any, started: Mapping[str, Any], *, run_id: str, is_described: bool) -> Any:
        config = started["config"]
        return wandb.init(
            id=run_id,
            project=self._config.wandb_project,
            entity=self._config.wandb_entity,
            group=started["experiment_name"],
            name=started["run_name"],
            # Once: people change them in W&B, and resuming would undo that.
            notes=None if is_described else config["description"],
            tags=None if is_described else config["tags"],
            config=_without_credentials({**config, "environment": started["environment"]}),
            dir=self._run_dir,
            resume="allow",
            reinit="create_new",  # another run of this process may still be finishing
            settings=wandb.Settings(
                init_timeout=_INIT_S,
                finish_timeout=_FINISH_S,
                finish_timeout_raises=True,
                console="off",  # do not upload the live display
                disable_git=True,  # the journal has it
                save_code=False,
                x_disable_meta=True,  # the command line and the user's name
                x_disable_stats=True,  # this process may only replay the journal
                x_save_requirements=False,
            ),
        )

    # --- wandb.json: state kept between processes -----------------------------------------------------------------

    def _load_state(self) -> dict[str, Any]:
        file = self._run_dir / "wandb.json"
        if not file.exists():
            new = {"run_id": uuid.uuid4().hex[:12], "step": _NEVER, "status": "", "is_offline": False}
            write_atomically(file, json.dumps(new, indent=2))
        try:
            return read_json(file, _STATE)
        except RunError as error:
            raise RunError(f"{error}; remove it, and the run is reported to W&B as a new one") from None

    def _last_complete(self) -> int:
        """Last step whose row W&B certainly has: the run ended, and was not only recorded offline if now online."""
        state = self._load_state()
        is_complete = state["status"] not in ("", "running") and (self._is_offline() or not state["is_offline"])
        return int(state["step"]) if is_complete else _NEVER

    def _save_state(self, *, status: str) -> None:
        state = {**self._load_state(), "step": self._last_logged, "status": status, "is_offline": self._is_offline()}
        write_atomically(self._run_dir / "wandb.json", json.dumps(state, indent=2))

    @staticmethod
    def _is_offline() -> bool:
        return _import_wandb().setup().settings.mode in ("offline", "dryrun")


def _import_wandb() -> Any:
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    import wandb

    return wandb


def _without_credentials(value: Any) -> Any:
    """Settings with the credentials removed from their URLs."""
    if isinstance(value, Mapping):
        return {key: _without_credentials(item) for key, item in value.items()}
    return without_credentials(value) if isinstance(value, str) else value
