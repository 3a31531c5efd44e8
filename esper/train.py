"""`esper-train`, and `fit`, the same from Python. Torch and MLflow are imported only when a run starts."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from esper import __version__, stopping
from esper.configs import TolariaConfig
from esper.configs.check import check
from esper.configs.compose import BAD_INPUT, compose, conf_folder, own_hydra, register
from esper.configs.explain import explain, explain_folder
from esper.configs.identity import outputs_folder, run_name
from esper.configs.load import from_hydra
from esper.configs.paths import absolute_paths, absolute_variables
from esper.configs.rank_env import rank_env
from esper.configs.text import quote_text
from esper.configs.trust import guard_hydra
from esper.errors import ConfigError, EsperError
from esper.folders import removed_if_empty, restored_if_refused
from esper.images.ahead import decoding_ahead
from esper.launch.exits import collect_failures, error_line, exit_with, print_traceback, record_failure
from esper.launch.output import keep_writing

if TYPE_CHECKING:
    from torch import nn

    from esper.launch.run import Outcome

__all__ = ["fit", "main"]

_shows_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"


def main() -> None:
    """Run the command; ends with `SystemExit`: 0 finished, 1 failed, 2 bad input, 128 + n stopped by signal n."""
    keep_writing()
    if "--version" in sys.argv[1:]:  # Hydra would print its own
        sys.stdout.write(f"esper-train {__version__}\n")
        raise SystemExit(0)
    absolute_variables()
    # torch.distributed prints C++ stack traces when a rank ends; Esper says in one line which rank and why.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    register()
    guard_hydra(conf_folder())
    _register_launchers()
    # Hydra then raises its errors instead of printing them with a traceback; they are printed here, in one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = quote_text(_options_first(sys.argv[1:]))
    try:
        with stopping.handled(), collect_failures() as failures, restored_if_refused():
            try:
                hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(app)()
            except Exception:
                stopping.check()  # a signal may have left OmegaConf half set up
                raise
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        if _shows_traceback:
            print_traceback()
            raise SystemExit(error.exit_code if isinstance(error, EsperError) else 1) from None
        exit_with(_as_shown(error))
    for line in failures:
        sys.stderr.write(f"error: {line}\n")
    raise SystemExit(min(failures.values(), default=0))


def _as_shown(error: Exception) -> EsperError:
    """An error of Hydra, or of its callbacks, as one line says it."""
    if isinstance(error, EsperError):
        return error
    if isinstance(error, BAD_INPUT):
        return explain(error)
    if isinstance(error, OSError) and error.filename:
        return explain_folder(error)
    return EsperError(error_line(error))


def _options_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with Hydra's options before all overrides: it would refuse an override after an option."""
    overrides = get_args_parser().parse_known_intermixed_args(arguments)[0].overrides
    left, options = list(overrides), []
    for argument in arguments:
        if left and argument == left[0]:
            left.pop(0)
        else:
            options.append(argument)
    return [*options, *overrides]


def _register_launchers() -> None:
    """Register the queues as Hydra launchers, which Hydra itself cannot find in an editable install."""
    from esper.sweep.launchers import QUEUES  # takes time to import that `fit` does not need
    from hydra_plugins.esper.launchers import launcher_class

    for name in QUEUES:
        Plugins.instance().register(launcher_class(name))


def app(cfg: DictConfig) -> float | None:
    """Train one run in the folder that Hydra made; returns the validation's leading metric, for sweepers."""
    settings = HydraConfig.get()
    run_dir = Path(settings.runtime.output_dir)
    with removed_if_empty(run_dir, below=Path(settings.runtime.cwd)):  # Hydra made it if hydra.job.chdir=true
        return _train(cfg, settings, run_dir)


def _train(cfg: DictConfig, settings: HydraConf, run_dir: Path) -> float | None:
    try:
        config = from_hydra(cfg, folder=settings.runtime.cwd)
        with _images_ahead(config, run_dir):
            with _loading():
                from esper.launch.run import run

            outcome = run(config, run_dir, sibling=_sibling(run_dir, settings.overrides.task, _recompose))
    except Exception as error:
        shown = error if isinstance(error, EsperError) else EsperError(error_line(error))
        if _shows_traceback or shown is not error or (cfg.debug_mode and shown.exit_code != 2):
            print_traceback()
        if settings.mode is RunMode.RUN:
            exit_with(shown)
        given: Any = OmegaConf.to_container(settings.overrides.task, resolve=False)  # values may be secrets
        line = f"{shlex.join(given)}: {error_line(error)}"
        if record_failure(line, exit_code=shown.exit_code):
            return None
        raise
    if outcome.exit_code:
        raise SystemExit(outcome.exit_code)
    return outcome.metric


def fit(
    *overrides: str,
    model: nn.Module | Callable[..., nn.Module] | None = None,
    data: Any = None,
    task: str | None = None,
    config: TolariaConfig | None = None,
    run_dir: Path | str | None = None,
) -> Outcome:
    """Train as `esper-train` does, with the same settings and the same run folder: `fit("model=resnet34")`.

    Works in a notebook too, where an event loop is already running, and inside an application of Hydra. Of several
    calls at once, in threads, one trains at a time. Torch's random states and flags are left as they were. Ctrl-C, or
    the stop button of a notebook, saves and ends it; the same call resumes.

    Returns an `Outcome`: `network`, `history`, `result`, `run_dir` and how the run ended.

    Args:
        overrides: the arguments of `esper-train`.
        model: a network of yours, of which a copy is trained from the weights that it has; or what makes one, such as
            its class, called with `model.options`, and with a `DataSpec` if it has a parameter `spec`.
        data: (train, val, test), (train, test) or one split. A split is (inputs, targets), two tensors; a map-style
            `torch.utils.data.Dataset` of such pairs; or the folder of a dataset that `datasets` has saved. Inputs:
            images (N, C, H, W), uint8 or float, or rows (N, D); targets: classes (N,), or float numbers.
        task: classification, regression, …: the setting `task`.
        config: a configuration to use instead of overrides.
        run_dir: the run folder; by default outputs/<experiment_name>/<run name>.

    Raises:
        EsperError: bad input, or the training failed.
    """
    if model is None and data is None and task is None:
        return _fit(overrides, config, run_dir)
    from esper.launch.alone import alone
    from esper.launch.own import own_overrides

    with alone():  # to the end, what is registered is theirs
        outcome = _fit((*own_overrides(model, data, task), *overrides), config, run_dir)
        return dataclasses.replace(outcome, model=model)


def _fit(overrides: tuple[str, ...], config: TolariaConfig | None, run_dir: Path | str | None) -> Outcome:
    if config is None:
        with own_hydra():
            overrides = tuple(quote_text(overrides))
            cfg = compose(overrides)
            config = from_hydra(cfg)
            folder = Path(run_dir or cfg.hydra.run.dir).expanduser()
        return _run_anywhere(config, folder, _sibling(folder, overrides, compose))
    if overrides:
        raise ConfigError(f"fit: got overrides ({' '.join(overrides)}) and a config; give one of them")
    config = absolute_paths(config)
    check(config)
    return _run_anywhere(
        config, Path(run_dir or Path("outputs") / config.experiment_name / run_name(config, ())).expanduser(), None
    )


def _loading() -> AbstractContextManager[None]:
    """Context manager: tell that PyTorch is being loaded, which takes seconds."""
    if "torch" in sys.modules or rank_env().rank > 0:
        return nullcontext()
    from esper.console import shown_waiting

    return shown_waiting("loading PyTorch")


def _images_ahead(config: TolariaConfig, run_dir: Path) -> AbstractContextManager[None]:
    """Context manager: another process decodes an image folder meanwhile; with several ranks, that of the first."""
    if config.dry_run or rank_env().rank > 0:
        return nullcontext()
    outputs = outputs_folder(run_dir.absolute(), experiment_name=config.experiment_name)
    return decoding_ahead(config.dataset, outputs / "cache")


def _recompose(overrides: Sequence[str]) -> DictConfig:
    """`compose` inside the command, where Hydra also knows `--config-dir`."""
    cfg: Any = HydraConfig.instance().cfg
    composed = GlobalHydra.instance().config_loader().load_sweep_config(cfg, list(overrides))
    composed.hydra.runtime.cwd = HydraConfig.get().runtime.cwd  # with hydra.job.chdir=true, this is another folder
    return composed


def _sibling(
    run_dir: Path, overrides: Sequence[str], compose_again: Callable[[Sequence[str]], DictConfig]
) -> Callable[[str], Path]:
    """A function that gives the folder of the same overrides' run with another arm of the comparison."""

    def folder(arm: str) -> Path:
        other = [*(override for override in overrides if not override.startswith("arm=")), f"arm={arm}"]
        cfg = compose_again(other)
        return run_dir.absolute().parent / run_name(from_hydra(cfg), cfg.hydra.overrides.task)

    return folder


def _run_anywhere(
    config: TolariaConfig,
    run_dir: Path,
    sibling: Callable[[str], Path] | None,
) -> Outcome:
    with stopping.handled(), _images_ahead(config, run_dir):
        with _loading():
            from esper.launch.alone import alone
            from esper.launch.run import run

        start = functools.partial(run, config, run_dir, sibling=sibling)
        with alone():
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return start()
            # asyncio.run fails inside a running loop, as in a notebook; a thread has its own.
            with ThreadPoolExecutor(max_workers=1) as thread:
                return thread.submit(start).result()
