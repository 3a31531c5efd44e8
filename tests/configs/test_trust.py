"""Presets and run folders of somebody else: no code runs, and no file keeps Esper busy."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from omegaconf import DictConfig

from esper.configs import trust
from esper.configs.compose import compose
from esper.configs.load import load_config
from esper.errors import ConfigError, RunError
from esper.report.run_record import read_run
from esper.tolaria.run_folder import recorded_config
from esper.train import _register_launchers
from tests.forked import ESPER_TRAIN, run

ALIASES = "\n".join(
    ["a: &a [x,x,x,x,x,x,x,x,x]"]
    + [f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
)
INTERPOLATIONS = "\n".join(
    ["description: ${tags.0}${tags.0}", "tags:", *(f"- ${{tags.{n}}}${{tags.{n}}}" for n in range(1, 40)), "- xx"]
)
CANARY = "{_target_: pathlib.Path.touch, _args_: [{_target_: pathlib.Path, _args_: [canary]}]}"
OWN = "_target_: esper.callbacks.CheckBeforeRun"
SWEEPER = "sweeper: {params: {sampler: {_target_: %s}}}"


def ran(tmp_path: Path, preset: str, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a dry run with a preset."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{preset}\n")
    done = run(ESPER_TRAIN, "--config-dir=mine", "experiment=mine", *arguments, cwd=tmp_path)
    return done.returncode, done.stderr


@pytest.mark.parametrize("bomb", [ALIASES, INTERPOLATIONS], ids=["aliases", "interpolations"])
def test_a_bomb_is_refused_wherever_it_lies(tmp_path: Path, bomb: str) -> None:
    began = time.process_time()
    (tmp_path / "config.yaml").write_text(bomb)
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(ConfigError, match=r"config.yaml: more than \d+ (aliases|interpolations)"):
        load_config(tmp_path / "config.yaml")
    with pytest.raises(RunError, match=r"config.yaml is not the configuration of a run"):
        recorded_config(tmp_path)
    with pytest.raises(RunError, match=r"config.yaml is not the configuration of a run; restore it"):
        read_run(tmp_path)
    with pytest.raises(ConfigError, match=r"mine.yaml: more than \d+ (aliases|interpolations)"):
        composed(tmp_path, bomb)
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    ("preset", "says"),
    [
        (ALIASES, r"\S+mine.yaml: more than 10 aliases"),
        (f"hydra: {{callbacks: {{spy: {CANARY}}}}}", r"hydra.callbacks.spy._target_=pathlib.Path.touch: names code"),
    ],
)
def test_a_hostile_preset_is_refused_before_anything_of_it_runs(tmp_path: Path, preset: str, says: str) -> None:
    code, error = ran(tmp_path, preset, "dataset=digits", "dry_run=true")
    assert code == 2
    assert re.match(f"error: {says}", error)
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("preset", "says"),
    [
        (f"callbacks: {{check: {{{OWN}, x: {CANARY}}}}}", "hydra.callbacks.check.x._target_=pathlib.Path.touch"),
        ("callbacks: {spy: {_target_: esper.callbacks.shutil.rmtree, path: x}}", "hydra.callbacks.spy._target_=esper"),
        ("callbacks: {spy: \"${oc.decode:'{_target_: os.remove}'}\"}", "hydra.callbacks.spy._target_=os.remove"),
        ("launcher: {_target_: hydra_plugins.esper.launchers.functools.partial}", "hydra.launcher._target_=hydra_plu"),
        (SWEEPER % "os.getcwd", "hydra.sweeper.params.sampler._target_=os.getcwd"),
        ("job_logging: {handlers: {a: {'()': os.getcwd}}}", r"hydra.job_logging.handlers.a.\(\)=os.getcwd"),
        ("job_logging: {handlers: {a: {class: evil.Handler}}}", "hydra.job_logging.handlers.a.class=evil.Handler"),
        (
            "hydra_logging: {handlers: {a: {stream: 'ext://evil.x'}}}",
            "hydra.hydra_logging.handlers.a.stream=ext://evil",
        ),
        ("job_logging: {handlers: {a: {filename: .bashrc}}}", "hydra.job_logging.handlers.a.filename=.bashrc"),
        ("job_logging: {handlers: '${oc.decode:x}'}", r"hydra.job_logging.handlers=\$\{oc.decode:x\}"),
        ("job: {env_set: {LD_PRELOAD: evil.so}}", "hydra.job.env_set.LD_PRELOAD: set variables in the shell"),
        ("searchpath: [pkg://evil]", r"\S+mine.yaml: hydra.searchpath: may import packages"),
    ],
)
def test_code_is_named_nowhere_in_hydras_settings(tmp_path: Path, preset: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"^{says}"):
        trust._require_trusted(composed(tmp_path, f"hydra: {{{preset}}}"), is_sweep=True)


@pytest.mark.parametrize("queue", ["local", "slurm"])
def test_what_esper_and_hydra_ship_is_allowed(tmp_path: Path, queue: str) -> None:
    _register_launchers()
    given = [f"hydra/launcher={queue}", "hydra/job_logging=default", "+hydra.job.env_set.OMP_NUM_THREADS=1"]
    preset = f"hydra: {{{SWEEPER % 'optuna.samplers.TPESampler'}}}"
    trust._require_trusted(composed(tmp_path, preset, *given), is_sweep=True)


def composed(tmp_path: Path, preset: str, *overrides: str) -> DictConfig:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{preset}\n")
    return compose([f"hydra.searchpath=[{tmp_path}]", "experiment=mine", *overrides])
