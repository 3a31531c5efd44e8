"""A run in Weights & Biases, made from the run's journal; the package is imported when a run is first reported."""

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
from esper.tracking.environment import without_credentials
from esper.tracking.files import write_atomically
from esper.tracking.history import History
from esper.tracking.records import FILES, points, stories

__all__ = ["WandbRun"]

# Set where the user has not. W&B on its own would print into the live display, ask for a key there, and report errors.
_VARIABLES = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
_INIT_S, _FINISH_S = 10, 10
"""For how long a server may take to answer, and to take what is left."""
_NEVER = -1


class WandbRun:
    """One run in W&B, brought up to date from the events of its journal, given from the first on.

    W&B's step is the optimizer step. What was measured at one step is one row, which W&B takes once: it is told when a
    later step follows, or the run has finished, because until then a run that resumes may add to it. A server says
    itself how far it is. Offline that is noted in `wandb.json` in the run folder, together with the run's id, before
    the rows are handed over: a kill in between loses them for W&B, and nothing is there twice. Of two judgements at
    one step, the row has the last; the summary tells both.

    Only one process at a time reports a run. Every method raises whatever W&B raises, and then nothing is left to do
    with this object but to close it.

    Args:
        config: project and entity.
        run_dir: folder of the run; W&B writes into `wandb` in it.

    Attributes:
        num_logged: points that were new to W&B.
        history: the run as told so far.
    """

    def __init__(self, config: TrackingConfig, *, run_dir: Path) -> None:
        self.num_logged = 0
        self.history = History()
        self._config = config
        self._run_dir = run_dir
        self._lock = FileLock(run_dir / ".wandb.lock")
        self._run: Any = None
        self._told: int | None = None  # the last step whose row W&B has, as far as is known
        self._rows: dict[int, dict[str, float]] = {}  # by step, those that W&B may not have

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
                row["_timestamp"] = point.time_ms / 1000  # when it was measured, not when it is told
                if point.key.startswith("epoch/"):
                    row["epoch"] = point.step
        if self._told is None:
            self._told = self._settled()
        self._send(before=self.history.step)

    def finish(self) -> None:
        """Report the last row if the run has finished, the end, and what the run folder holds."""
        if self.history.started is None:
            return
        ended = self.history.ended or {"status": "killed", "reason": ""}
        is_finished = ended["status"] == "finished"
        self._send(before=self.history.step + is_finished)
        if self._run is None:
            if self._known()["status"] == ended["status"]:
                return
            self._attach(self.history.started)
        self._run.summary.update({"status": ended["status"], "reason": ended["reason"]})
        for path in (self._run_dir / name for name in FILES):
            if path.is_file():
                self._run.save(path, base_path=self._run_dir, policy="now")
        run, self._run = self._run, None
        run.finish(exit_code=0 if is_finished else 1)
        self._note(status=ended["status"])

    def close(self) -> None:
        """Let others report this run; safe to call twice."""
        run, self._run = self._run, None
        try:
            if run is not None:
                run.finish(exit_code=1)
        finally:
            self._lock.release()

    def _send(self, *, before: int) -> None:
        """Tell W&B the rows of earlier steps that it does not have."""
        assert self._told is not None
        if all(step >= before or step <= self._told for step in self._rows):
            return
        if self._run is None:
            assert self.history.started is not None
            self._attach(self.history.started)
        rows = {step: self._rows.pop(step) for step in list(self._rows) if step < before}
        new = {step: row for step, row in rows.items() if step > self._told}  # a server may have more than was noted
        if new:
            self._told = max(new)
            self._note(status="running")
        for step, row in new.items():
            self._run.log(row, step=step, commit=True)
            self.num_logged += len(row.keys() - {"epoch", "_timestamp"})
        self._run.summary.update(stories(self.history))

    def _attach(self, started: Mapping[str, Any]) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"{self._run_dir} is being reported by another process; wait for it") from None
        known = self._known()
        wandb = _wandb()
        try:
            self._run = self._init(wandb, started, run_id=known["run_id"])
        except Exception:
            # W&B's service would hold on to the run that it could not make, and refuse to make it later.
            wandb.teardown()
            raise
        self._run.define_metric("epoch/*", step_metric="epoch")
        self._told = known["step"] if self._run.offline else self._run.starting_step - 1

    def _init(self, wandb: Any, started: Mapping[str, Any], *, run_id: str) -> Any:
        config = started["config"]
        return wandb.init(
            id=run_id,
            project=self._config.wandb_project,
            entity=self._config.wandb_entity,
            group=started["experiment_name"],
            name=started["run_name"],
            notes=config["description"],
            tags=config["tags"],
            config=_scrubbed({**config, "environment": started["environment"]}),
            dir=self._run_dir,
            resume="allow",
            reinit="create_new",  # another run of this process may be finishing still
            settings=wandb.Settings(
                init_timeout=_INIT_S,
                finish_timeout=_FINISH_S,
                finish_timeout_raises=True,
                console="off",  # the live display is no log
                disable_git=True,  # the journal has it
                save_code=False,
                x_disable_meta=True,  # the command line and the user's name
                x_disable_stats=True,  # of this process, which may only replay the journal
                x_save_requirements=False,
            ),
        )

    # --- what is known between two processes ----------------------------------------------------------------------

    def _known(self) -> dict[str, Any]:
        file = self._run_dir / "wandb.json"
        if not file.exists():
            new = {"run_id": uuid.uuid4().hex[:12], "step": _NEVER, "status": "", "is_offline": False}
            write_atomically(file, json.dumps(new, indent=2))
        known: dict[str, Any] = json.loads(file.read_text())
        return known

    def _settled(self) -> int:
        """The last step whose row W&B has for certain: it was told the end, and not offline if it is asked now."""
        known = self._known()
        is_settled = known["status"] not in ("", "running") and (self._is_offline() or not known["is_offline"])
        return int(known["step"]) if is_settled else _NEVER

    def _note(self, *, status: str) -> None:
        known = {**self._known(), "step": self._told, "status": status, "is_offline": self._is_offline()}
        write_atomically(self._run_dir / "wandb.json", json.dumps(known, indent=2))

    @staticmethod
    def _is_offline() -> bool:
        return _wandb().setup().settings.mode in ("offline", "dryrun")


def _wandb() -> Any:
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    import wandb

    return wandb


def _scrubbed(value: Any) -> Any:
    """Settings without the credentials of the URLs in them."""
    if isinstance(value, Mapping):
        return {key: _scrubbed(item) for key, item in value.items()}
    return without_credentials(value) if isinstance(value, str) else value
