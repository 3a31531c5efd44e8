"""`esper doctor`: runs all checks in parallel and prints a row for each, with a remedy for each problem."""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from rich.table import Table
from rich.text import Text

from esper.doctor import folders, machine, servers
from esper.doctor.finding import FAILED, NOT_USED, OK, WARNING, Finding, PlannedRun, failed, failed_with
from esper.doctor.probe import probe
from esper.errors import ConfigError, EsperError, one_line
from esper.launch.exits import error_line
from esper.terminal import table_console

__all__ = ["main"]

_STYLES = {OK: "green", WARNING: "yellow", FAILED: "red", NOT_USED: "dim"}
_DEADLINE_S = 15.0
"""Time limit of a check beside its own timeouts: a dead NFS mount never returns."""
_PROBE_DEADLINE_S = 75.0

_CHECKS: dict[str, Callable[[], Finding]] = {
    "python": machine.python,
    "packages": machine.packages,
    "memory": machine.memory,
    "open files": machine.open_files,
}
_RUN_CHECKS: dict[str, Callable[[PlannedRun], Finding]] = {
    "torch": machine.torch,
    "torchvision": machine.torchvision,
    "gpu": machine.gpu,
    "cores": machine.cores,
    "compiler": machine.compiler,
    "environment": machine.environment,
    "settings": folders.settings,
    "outputs": folders.outputs,
    "checkpoints": folders.checkpoints,
    "filesystem": folders.filesystem,
    "runs": folders.runs,
    "mlflow": servers.mlflow,
    "wandb": servers.wandb,
    "redis": servers.redis,
    "library": servers.library,
    "slurm": servers.slurm,
}
_NEED_PROBE = ("torch", "torchvision", "gpu", "cores", "library")


def main(overrides: Sequence[str], *, as_json: bool) -> int:
    """Print the findings; returns exit code 1 if a check failed, else 0.

    Args:
        overrides: as for `esper-train`.
        as_json: print JSON instead of a table.

    Raises:
        ConfigError: invalid overrides.
    """
    findings = _check(overrides)
    if as_json:
        rows = [
            {"name": name, "status": one.status, "found": one.found, "remedy": one.remedy}
            for name, one in findings.items()
        ]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        table_console().print(_table(findings), _summary(findings), sep="\n")
    return 1 if any(one.status == FAILED for one in findings.values()) else 0


def _check(overrides: Sequence[str]) -> dict[str, Finding]:
    try:
        run = _planned_run(overrides)
    except ConfigError as error:
        raise ConfigError(one_line(error)) from None
    except EsperError:
        raise
    except Exception as error:  # the installed Hydra or OmegaConf cannot be imported
        unreadable = failed(f"cannot be read: {error_line(error)}", "fix the packages first")
        return _run_parallel(_CHECKS) | {"settings": unreadable}
    return _run_parallel(_CHECKS | {name: functools.partial(check, run) for name, check in _RUN_CHECKS.items()})


def _planned_run(overrides: Sequence[str]) -> PlannedRun:
    # Imported here, as their own imports may fail with the installed package versions.
    from pathlib import Path

    from esper.configs.compose import compose
    from esper.configs.identity import outputs_folder
    from esper.configs.load import from_hydra

    cfg: Any = compose(overrides)
    config = from_hydra(cfg)
    run_dir = Path(cfg.hydra.run.dir)
    outputs_dir = outputs_folder(run_dir.absolute(), experiment_name=config.experiment_name)
    return PlannedRun(
        config=config,
        run_dir=run_dir,
        outputs_dir=outputs_dir,
        launcher=cfg.hydra.runtime.choices["hydra/launcher"],
        probe=_start(functools.partial(probe, config, outputs_dir=outputs_dir)).result,
    )


def _start(work: Callable[[], Any]) -> Future[Any]:
    """Start work in a daemon thread, which does not delay the exit of the process as an executor's would."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # raised by `future.result`
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _run_parallel(checks: Mapping[str, Callable[[], Finding]]) -> dict[str, Finding]:
    started = time.monotonic()
    futures = {name: _start(check) for name, check in checks.items()}
    findings = {}
    for name, future in futures.items():
        deadline_s = _PROBE_DEADLINE_S if name in _NEED_PROBE else _DEADLINE_S
        try:
            findings[name] = future.result(max(0.0, started + deadline_s - time.monotonic()))
        except TimeoutError:
            findings[name] = failed(
                f"no response within {deadline_s:g} s", "check for a hung file server or name server"
            )
        except EsperError as error:
            findings[name] = failed_with(error_line(error))
        except Exception as error:  # the other checks must still run
            findings[name] = failed(f"cannot be checked: {error_line(error)}", "see the message")
    return findings


def _table(findings: Mapping[str, Finding]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, one in findings.items():
        style = _STYLES[one.status]
        found = Text(one.found, style="dim" if one.status == NOT_USED else "")
        if one.remedy:
            found.append(f"\n→ {one.remedy}", style=style)
        table.add_row(Text(name), Text(one.status, style=style), found)
    return table


def _summary(findings: Mapping[str, Finding]) -> Text:
    parts = []
    for status, word in ((FAILED, "problem"), (WARNING, "warning")):
        names = [name for name, one in findings.items() if one.status == status]
        if names:
            parts.append(f"{len(names)} {word}{'s' if len(names) > 1 else ''}: {', '.join(names)}")
    return Text("; ".join(parts) or "all well")
