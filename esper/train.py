"""`esper-train`, and `fit`, the same from Python. Torch and its like are imported only when a run starts."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig

from esper.configs import TolariaConfig
from esper.configs.check import check
from esper.configs.compose import BAD_INPUT, compose, conf_folder, register
from esper.configs.explain import explain
from esper.configs.identity import run_name
from esper.configs.load import from_hydra
from esper.errors import ConfigError, EsperError
from esper.launch import exits
from esper.launch.exits import exit_with, line_of
from hydra_plugins.esper.launchers import LocalLauncher, SlurmLauncher

if TYPE_CHECKING:
    from esper.launch.run import Outcome

__all__ = ["fit", "main"]

_shows_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"


def main() -> None:
    """Run the command; ends with `SystemExit`, 0 finished, 1 failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""
    failures: list[str] = []
    exits.failures = failures
    register()
    for launcher in (LocalLauncher, SlurmLauncher):  # Hydra cannot look for them in an editable install
        Plugins.instance().register(launcher)
    # Hydra then raises its errors instead of printing them with a traceback; they are told in one line here.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(app)()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        if _shows_traceback:
            raise
        if isinstance(error, EsperError):
            exit_with(error)
        exit_with(explain(error) if isinstance(error, BAD_INPUT) else EsperError(line_of(error)))
    for line in failures:
        sys.stderr.write(f"error: {line}\n")
    raise SystemExit(1 if failures else 0)


def app(cfg: DictConfig) -> float | None:
    """One run, in the folder that Hydra made; returns the validation accuracy, for sweepers that search."""
    settings = HydraConfig.get()
    try:
        from esper.launch.run import run

        run_dir = Path(settings.runtime.output_dir)
        outcome = run(from_hydra(cfg), run_dir, sibling=_sibling(run_dir, settings.overrides.task, _recompose))
    except Exception as error:
        told = error if isinstance(error, EsperError) else EsperError(line_of(error))
        if _shows_traceback or told is not error or (cfg.debug_mode and told.exit_code != 2):
            traceback.print_exc()
        if settings.mode is RunMode.RUN:
            exit_with(told)
        if exits.failures is None:
            raise
        exits.failures.append(f"{' '.join(settings.overrides.task)}: {line_of(error)}")
        return None
    if outcome.exit_code:
        raise SystemExit(outcome.exit_code)
    return outcome.metric


def fit(*overrides: str, config: TolariaConfig | None = None, run_dir: Path | str | None = None) -> Outcome:
    """Train as `esper-train` does, with the same settings and the same run folder: `fit("model=resnet34")`.

    Works in a notebook too, where an event loop runs already.

    Args:
        overrides: what would follow `esper-train`.
        config: a configuration to use instead.
        run_dir: where the run goes; else outputs/<experiment_name>/<run name>.

    Raises:
        EsperError: bad input, or the training failed.
    """
    if config is None:
        cfg = compose(overrides)
        config = from_hydra(cfg)
        folder = Path(run_dir or cfg.hydra.run.dir)
        return _run_anywhere(config, folder, _sibling(folder, overrides, compose))
    if overrides:
        raise ConfigError(f"fit: got overrides ({' '.join(overrides)}) and a config; give one of them")
    check(config)
    return _run_anywhere(config, Path(run_dir or Path("outputs") / config.experiment_name / run_name(config, ())), None)


def _recompose(overrides: Sequence[str]) -> DictConfig:
    """The same inside the command, where Hydra knows what else was given (`--config-dir`)."""
    cfg: Any = HydraConfig.instance().cfg
    return GlobalHydra.instance().config_loader().load_sweep_config(cfg, list(overrides))


def _sibling(
    run_dir: Path, overrides: Sequence[str], compose_again: Callable[[Sequence[str]], DictConfig]
) -> Callable[[str], Path]:
    """Where the run is that the same overrides make with another arm of the comparison, beside this one."""

    def folder(arm: str) -> Path:
        asked = [*(one for one in overrides if not one.startswith("arm=")), f"arm={arm}"]
        return run_dir.absolute().parent / run_name(from_hydra(compose_again(asked)), asked)

    return folder


def _run_anywhere(config: TolariaConfig, run_dir: Path, sibling: Callable[[str], Path] | None) -> Outcome:
    from esper.launch.run import run

    go = functools.partial(run, config, run_dir, sibling=sibling)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return go()
    # A running loop cannot be entered again; a thread has its own.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(go).result()
