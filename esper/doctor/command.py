"""`esper doctor`: is everything here that a run would need? A row for each check, with what to do about it."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any
from urllib.parse import unquote, urlsplit

from rich.console import Group
from rich.table import Table
from rich.text import Text

from esper.doctor import checks, folders, reach
from esper.doctor.finding import FAILED, NOT_USED, OK, WARNING, Finding, Subject, failed
from esper.doctor.probe import probe
from esper.errors import ConfigError, EsperError
from esper.launch.exits import error_line
from esper.terminal.display import table_console

__all__ = ["main"]

_STYLES = {OK: "green", WARNING: "yellow", FAILED: "red", NOT_USED: "dim"}
_DEADLINE_S = 15.0
"""The most that a check may take, beyond its own deadlines: a folder of a dead file server answers never."""
_PROBE_DEADLINE_S = 75.0

_ALONE: dict[str, Callable[[], Finding]] = {
    "python": checks.python,
    "packages": checks.packages,
    "memory": checks.memory,
    "open files": checks.open_files,
}
_OF_RUN: dict[str, Callable[[Subject], Finding]] = {
    "torch": checks.torch,
    "torchvision": checks.torchvision,
    "gpu": checks.gpu,
    "cores": checks.cores,
    "shared memory": checks.shared_memory,
    "compiler": checks.compiler,
    "environment": checks.environment,
    "settings": folders.settings,
    "outputs": folders.outputs,
    "checkpoints": folders.checkpoints,
    "filesystem": folders.filesystem,
    "runs": folders.runs,
    "mlflow": reach.mlflow,
    "wandb": reach.wandb,
    "redis": reach.redis,
    "library": reach.library,
    "slurm": reach.slurm,
}
_WAIT_FOR_TORCH = ("torch", "torchvision", "gpu", "cores", "library")


def main(overrides: Sequence[str], *, as_json: bool) -> int:
    """Print how everything stands; returns 1 if a check failed, else 0.

    Args:
        overrides: those of `esper-train`.
        as_json: a list of rows, for programs.

    Raises:
        ConfigError: the overrides cannot be used.
    """
    found = _examine(overrides)
    if as_json:
        rows = [
            {"name": name, "status": one.status, "found": one.found, "remedy": one.remedy}
            for name, one in found.items()
        ]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        table_console().print(_told(found))
    return 1 if any(one.status == FAILED for one in found.values()) else 0


def _examine(overrides: Sequence[str]) -> dict[str, Finding]:
    """What each check found, by name."""
    asked: dict[str, Callable[[], Finding]] = dict(_ALONE)
    fault = None
    try:
        subject = _subject(overrides)
    except ConfigError as error:
        raise ConfigError(_scrubbed(str(error))) from None
    except EsperError:
        raise
    except Exception as error:  # Hydra or OmegaConf are of a version that cannot even be imported
        fault = failed(f"cannot be read: {_scrubbed(error_line(error))}", "put the packages right first")
    else:
        asked |= {name: functools.partial(check, subject) for name, check in _OF_RUN.items()}
    found = _side_by_side(asked)
    return found if fault is None else found | {"settings": fault}


def _subject(overrides: Sequence[str]) -> Subject:
    # Here, as what they import may be what is broken.
    from pathlib import Path

    from esper.configs.compose import compose
    from esper.configs.identity import outputs_folder
    from esper.configs.load import from_hydra

    cfg: Any = compose(overrides)
    config = from_hydra(cfg)
    run_dir = Path(cfg.hydra.run.dir)
    outputs_dir = outputs_folder(run_dir.absolute(), experiment_name=config.experiment_name)
    return Subject(
        config=config,
        run_dir=run_dir,
        outputs_dir=outputs_dir,
        launcher=cfg.hydra.runtime.choices["hydra/launcher"],
        probe=_begin(functools.partial(probe, config, outputs_dir=outputs_dir)).result,
    )


def _begin(work: Callable[[], Any]) -> Future[Any]:
    """Do it in a thread that nobody waits for at the end of the process, as executors' are."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # whoever asks for the result gets it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _side_by_side(asked: Mapping[str, Callable[[], Finding]]) -> dict[str, Finding]:
    began = time.monotonic()
    futures = {name: _begin(check) for name, check in asked.items()}
    found = {}
    for name, future in futures.items():
        deadline_s = _PROBE_DEADLINE_S if name in _WAIT_FOR_TORCH else _DEADLINE_S
        try:
            found[name] = future.result(max(0.0, began + deadline_s - time.monotonic()))
        except TimeoutError:
            found[name] = failed(
                f"no answer within {deadline_s:g} s", "see whether a file server or a name server hangs"
            )
        except EsperError as error:
            what, _, remedy = _scrubbed(error_line(error)).rpartition("; ")
            found[name] = failed(what or remedy, remedy if what else "see what it says")
        except Exception as error:  # a check that breaks must not take the others with it
            found[name] = failed(f"cannot be checked: {_scrubbed(error_line(error))}", "see what it says")
    return found


def _told(found: Mapping[str, Finding]) -> Group:
    """A table and the verdict."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, one in found.items():
        style = _STYLES[one.status]
        what = Text(one.found, style="dim" if one.status == NOT_USED else "")
        if one.remedy:
            what.append(f"\n→ {one.remedy}", style=style)
        table.add_row(Text(name), Text(one.status, style=style), what)
    return Group(table, Text(_verdict(found)))


def _verdict(found: Mapping[str, Finding]) -> str:
    told = []
    for status, word in ((FAILED, "problem"), (WARNING, "warning")):
        names = [name for name, one in found.items() if one.status == status]
        if names:
            told.append(f"{len(names)} {word}{'s' if len(names) > 1 else ''}: {', '.join(names)}")
    return "; ".join(told) or "all well"


def _scrubbed(text: str) -> str:
    """What a library says, without the credentials that may stand in it."""
    for name, value in os.environ.items():
        if value and re.search("PASSWORD|PASSWD|SECRET|TOKEN|API_KEY", name):
            text = text.replace(value, "***")
        elif "://" in value and (password := _password(value)):
            text = text.replace(password, "***").replace(unquote(password), "***")
    return re.sub(r"(?<=://)[^/\s?#]*@", "", text)


def _password(url: str) -> str | None:
    try:
        return urlsplit(url).password
    except ValueError:
        return None
