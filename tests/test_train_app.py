"""The command `esper-train` and `fit`, run as a user runs them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from sqlalchemy import make_url

from esper import __version__, fit
from esper.configs import TolariaConfig
from esper.configs.comparison import ARMS
from esper.errors import ConfigError
from esper.inference.export import export
from esper.tracking import sync
from esper.train import main
from tests.forked import ESPER_TRAIN, ROOT, run

NEEDS_NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="the device that is asked for is there")
LIGHT = """
import sys
sys.argv[0] = "esper-train"
from esper.train import main
try:
    main()
finally:
    print("HEAVY", sorted({"torch", "torchvision", "mlflow", "sklearn", "matplotlib"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], "esper-train experiment=quickstart"),
        (["--cfg", "job", "--resolve", "experiment=debug"], "experiment_name: debug"),
        (["--info", "searchpath"], "Search path"),
        (["-sc", "query=bash"], "model=resnet_small"),
    ],
)
def test_showing_help_or_configuration_imports_neither_torch_nor_mlflow(
    tmp_path: Path, arguments: list[str], shown: str
):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COMP_LINE": "esper-train model=resnet", "COMP_POINT": "24"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert "HEAVY []" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["optimization.max_epoch=3"], "did you mean optimization.max_epochs?"),
        (["+typo=1"], "typo: no such setting"),
        (["~optimization.max_epochs"], "~optimization.max_epochs: no setting can be removed; leave"),
        (["~optimization.max_epochs=7"], "~optimization.max_epochs: no setting can be removed; leave"),
        (["~experiment=debug"], "~experiment: no setting can be removed; leave"),
        (["optimization.max_epochs=many"], "optimization.max_epochs=many: must be a whole number"),
        (["optimization.max_epochs=0"], "allowed is at least 1"),
        (["hydra.run.dir=out/${hydra.job.num}"], "hydra.run.dir: ${hydra.job.num} has no value here; in hydra.sweep"),
        (["hydra.run.dir="], "hydra.run.dir='': names no folder"),
        (["experiment=debug", "hydra.run.dir=.", "fresh=true"], "the command was started in it; name another folder"),
        (
            ["experiment=debug", "hydra.run.dir=/proc/none/run"],
            "error: /proc/none: No such file or directory; hydra.run.dir=",
        ),
        (["-m", "experiment=debug", "rng_seed=0,1", "hydra.sweep.dir=/proc/none"], "error: /proc/none: No such file"),
        (["-m", "experiment=debug", "rng_seed=0,1", "hydra.sweep.dir="], "hydra.sweep.dir='': names no folder"),
        (["model=resnet19"], "did you mean resnet18?"),
        (["rng_seed=0,1"], "add -m"),
        (["tags=a", "-m", "model=resnet18,resnet19", "--config-dir", "."], "did you mean resnet18?"),
        (["dataset.data_dir=Bücher,x"], "or write 'dataset.data_dir=\"Bücher,x\"'"),
        (["dataset=imagefolder", "dataset.data_dir=it's #1"], "it's #1: needs a folder train/"),
        (["optimization.scheduler=cosine", "morphogenetic.growth_until=0.6"], "allowed is at most 0.5"),
        (["hydra/launcher=submitit_slurm"], "launches sweeps only; add -m"),
        (["hydra/launcher=slurm"], "launches sweeps only; add -m"),
        (["-m", "rng_seed=0,1", "hydra/launcher=slurm", "hydra.launcher.timeout_min=1h"], "must be a whole number"),
        (
            ["-m", "rng_seed=0,1", "hydra/launcher=slurm", "hydra.launcher.timeout_min=1"],
            "below hydra.launcher.timeout",
        ),
        (["-m", "rng_seed=0,1", "hydra/launcher=slurm", "hydra.launcher.partion=gpu"], "did you mean partition?"),
        (["-m", "rng_seed=0,1", "hydra/launcher=submitit_slurm"], "hydra/launcher=submitit_slurm: use slurm"),
        (["-m", "rng_seed=0,1", "hydra/launcher=local", "+hydra.launcher.job=2"], "did you mean jobs?"),
        (["-m", "optimization.max_epochs=3,0", "hydra/launcher=local"], "allowed is at least 1"),
        (["-m", "hydra/launcher=local", "hydra.sweep.subdir=${hydra.job.num}"], "names the run folders itself; leave"),
        pytest.param(["experiment=debug", "device=cuda"], "no usable CUDA", marks=NEEDS_NO_CUDA),
        (["experiment=debug", "device=cuda:77"], "CUDA device"),
        (["experiment=debug", "device=meta"], "device=meta: allowed are auto, cpu, cuda, cuda:N, mps"),
        (["-m", "experiment=debug", "device=cuda:1", "hydra/launcher=local"], "assigns GPUs to runs; use device=cuda"),
        (["-m", "experiment=debug", "device=cuda:0", "hydra/launcher=slurm"], "assigns GPUs to runs; use device=cuda"),
        (["experiment=debug", "model.target_layers=[layr1]"], "did you mean layer1?"),
        (["experiment=debug", "dataset.batch_size=5000"], "the training split of synthetic has"),
        (["-m", "optimization.max_epochs=3,0"], "allowed is at least 1"),
        (["-m", "model=resnet18,resnet19"], "error: model=resnet19: allowed are"),
        (
            ["-m", "experiment=debug", "optimization.weight_decay=0,-1", "rng_seed=0,1", "hydra/launcher=local"],
            "error: optimization.weight_decay=-1 rng_seed=0: optimization.weight_decay=-1.0: allowed is at least 0",
        ),
        (
            ["-m", "experiment=debug", "optimization.max_epochs=9,2", "optimization.warmup_epochs=2,3"],
            "error: optimization.max_epochs=2 optimization.warmup_epochs=2: optimization.warmup_epochs=2: allowed is",
        ),
        (
            ["-m", "experiment=debug", "optimization.weight_decay=-1", "rng_seed=0,1"],
            "error: optimization.weight_decay",
        ),
        (
            ["-m", "experiment=debug", "model.target_layers=[layer1],[layr1]", "rng_seed=0,1"],
            "error: 'model.target_layers=[layr1]' rng_seed=0: model.target_layers: 'layr1' matches no layer",
        ),
        (
            ["-m", "experiment=debug", "rng_seed=0,1", "model.init_from=null,nowhere"],
            "error: rng_seed=0 model.init_from=nowhere: model.init_from=",
        ),
        (
            ["-m", "experiment=debug", "rng_seed=0,1", "hydra/launcher=local", "model.freeze=[layr1.*]"],
            "error: model.freeze=layr1.*: matches no parameter",
        ),
        (["-m", "dry_run=true,false"], "give one value"),
        (["-m", "experiment=debug", "description=a,b"], "description=a description=b: would be one run, debug/"),
        (["-m", "experiment=debug", "device=cpu,auto", "hydra/launcher=local"], "would be one run, experiment_debug-"),
        (
            ["-m", "experiment=debug", "morphogenetic=default,stack"],
            "morphogenetic=default morphogenetic=stack: would train the same twice, as the settings are equal; give",
        ),
        (
            ["-m", "experiment=debug", "hydra/launcher=local", "rng_seed=0,1", "optimization.learning_rate=1,1.0"],
            "optimization.learning_rate=1 optimization.learning_rate=1.0: would train the same twice",
        ),
        (
            ["-m", "experiment=fair_comparison", "arm=grown", "rng_seed=0", "morphogenetic=stack,default"],
            "morphogenetic=default morphogenetic=stack: would train the same twice",
        ),
        (["-m", "experiment=debug", "description='${x}',b"], "Interpolation key 'x' not found"),
        (["arm=finl"], "did you mean final?"),
        (["experiment=fair_comparison"], "add -m, or choose one arm, such as arm=grown"),
        (["-m", "experiment=fair_comparison", "rng_seed=0", "optimization.patience=3"], "leave it null"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_on_disk(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
):
    # In this process: a new one imports for seconds.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["esper-train", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # main sets these two
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    stderr = capfd.readouterr().err
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert line in stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("experiment/mine.yaml", "optimization: {max_epochs: 3}", "a preset begins with the line # @package _global_"),
        ("experiment/mine.yaml", "# @package _global_\noptimization: {max_epochs: 3 x}", "must be a whole number"),
        ("model/mine.yaml", "name: resnet_small\nwidht: 3", "model.widht: no such setting; did you mean model.width?"),
    ],
)
def test_a_mistake_in_a_file_of_ones_own_is_named_with_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    file: str,
    text: str,
    line: str,
):
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["esper-train", "--config-dir", ".", f"{file.partition('/')[0]}=mine"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    with pytest.raises(SystemExit, match="2"):
        main()
    stderr = capfd.readouterr().err
    assert stderr.startswith(f"error: {file}: ")
    assert stderr.endswith(f"{line}\n")


def test_the_command_has_the_version_of_esper(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["esper-train", "model=resnet18", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"esper-train {__version__}\n"


def test_a_run_says_which_defaults_it_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    short = ["model=resnet_small", "dataset=synthetic", "morphogenetic=schedule", "tracking=none", "device=cpu"]
    short += ["model.widths=4", "model.depths=1", "model.target_layers=layer1", "dataset.num_examples=200"]
    outcome = fit(*short, "optimization.max_epochs=1", "optimization.scheduler=cosine", run_dir=tmp_path / "run")
    told = " ".join(capsys.readouterr().out.split())
    warm_up = "optimization.warmup_epochs=0.1 (default 1), since optimization.max_epochs=1"
    growth = "morphogenetic.growth_until=0.5 (default 0.6), since optimization.scheduler=cosine"
    assert f"note adjusted {warm_up}; {growth}" in told
    recorded = yaml.safe_load((outcome.run_dir / "config.yaml").read_text())
    assert recorded["adjusted"] == [warm_up, growth]
    assert recorded["optimization"]["warmup_epochs"] == 0.1


def test_a_dry_run_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "cwd").mkdir()
    (tmp_path / "tmp").mkdir()
    done = run(ESPER_TRAIN, "experiment=debug", "dry_run=true", cwd=tmp_path / "cwd", TMPDIR=str(tmp_path / "tmp"))
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "cwd").iterdir())
    assert not [left for left in (tmp_path / "tmp").iterdir() if left.name.startswith("esper")]


COUNTED = """
from hydra._internal.config_loader_impl import ConfigLoaderImpl
compose, composed = ConfigLoaderImpl.load_sweep_config, []
def counted(self, master, overrides):
    composed.append(tuple(overrides))
    return compose(self, master, overrides)
ConfigLoaderImpl.load_sweep_config = counted
import atexit
atexit.register(lambda: print("COMPOSED", len(composed), len(set(composed))))
"""


@pytest.mark.parametrize(("launcher", "num_times"), [("basic", 2), ("local", 1)])
def test_members_of_a_sweep_are_composed_once_to_check_and_launch_all_and_once_each_to_run_here(
    tmp_path: Path, launcher: str, num_times: int
):
    arguments = ["-m", "experiment=debug", "rng_seed=0,1", "dry_run=true", f"hydra/launcher={launcher}"]
    done = run(COUNTED + ESPER_TRAIN, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"COMPOSED {2 * num_times} 2\n")


@pytest.mark.long
def test_a_comparison_trains_every_arm_grown_first_and_shows_the_answer(tmp_path: Path):
    thin = ["model=resnet_small", "model.widths=[4,8]", "model.depths=[2,2]", "model.target_layers=[layer1,layer2]"]
    short = ["dataset=digits", "optimization.max_epochs=4", "optimization.warmup_epochs=0.5", "tracking=none"]
    command = ["-m", "experiment=fair_comparison", "rng_seed=0", *thin, *short, "morphogenetic=stack"]
    done = run(ESPER_TRAIN, *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Did growing pay? Not shown: against the best static arm at equal compute" in " ".join(done.stdout.split())
    assert done.stdout.endswith("\noutputs/fair_comparison/comparison.html\n")
    finished = re.findall(r"^fair_comparison/arm_([a-z_]+)-\S+\s+finished", done.stdout, flags=re.MULTILINE)
    assert finished[0] == "grown"
    assert sorted(finished) == sorted(ARMS)
    arms = json.loads((tmp_path / "outputs" / "fair_comparison" / "comparison.json").read_text())["arms"]
    for name in [name for name, arm in ARMS.items() if arm.budget == "compute"]:
        assert arms[name]["flops"] == pytest.approx(arms["grown"]["flops"], rel=0.02)
    sizes = [arms[name]["num_macs"] for name in ("static_flops", "between_flops", "final_flops")]
    assert sizes == sorted(set(sizes))
    journals = {path: path.read_bytes() for path in tmp_path.glob("outputs/*/*/journal.jsonl")}
    assert len(journals) == len(ARMS)
    again = run(ESPER_TRAIN, *command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {path: path.read_bytes() for path in tmp_path.glob("outputs/*/*/journal.jsonl")} == journals


def test_fit_refuses_a_typo_as_the_command_does():
    with pytest.raises(ConfigError, match=r"did you mean optimization\.max_epochs\?"):
        fit("optimization.max_epoch=3")


def test_fit_checks_a_given_configuration():
    config = TolariaConfig(rng_seed=-1)
    with pytest.raises(ConfigError, match="rng_seed=-1"):
        fit(config=config)


def test_fit_takes_overrides_or_a_configuration():
    with pytest.raises(ConfigError, match="give one of them"):
        fit("rng_seed=1", config=TolariaConfig())


def test_fit_works_inside_a_running_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    async def cell() -> int:
        return fit("experiment=debug", "optimization.warmup_epochs=0.25").exit_code

    assert asyncio.run(cell()) == 0
    (run_dir,) = (tmp_path / "outputs" / "debug").iterdir()
    assert run_dir.name.startswith("experiment_debug-warmup_epochs_0.25-")


@pytest.mark.long
def test_paths_mean_the_folder_of_the_command_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, elsewhere = tmp_path / "a?b %20c#d' ü$x=1,2", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    settings = ["experiment=debug", "debug_mode=false", "morphogenetic=off", "optimization.max_epochs=1"]
    places = ["tracking=mlflow", "tracking.uri=sqlite:///own.db", "checkpoint.checkpoint_dir=kept"]
    done = run(ESPER_TRAIN, *settings, *places, "hydra.job.chdir=true", cwd=folder)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (folder / "outputs" / "debug").iterdir()
    printed = done.stdout.partition("mlflow ui --backend-store-uri ")[2]
    assert make_url(shlex.split(printed)[0]).database == str(folder / "own.db")
    monkeypatch.chdir(elsewhere)
    assert sync.main([run_dir], None) == 0
    assert export(run_dir, elsewhere / "network", best=False)
    with contextlib.closing(sqlite3.connect(folder / "own.db")) as database:
        assert database.execute("SELECT name, status FROM runs").fetchall() == [(run_dir.name, "FINISHED")]
    assert {path.name for path in folder.iterdir()} == {"outputs", "kept", "own.db", "own.db.lock"}
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "elsewhere"}
    assert [path.name for path in elsewhere.iterdir()] == ["network"]


@pytest.mark.long
def test_a_relative_variable_means_the_folder_of_the_command(tmp_path: Path):
    settings = ["experiment=debug", "debug_mode=false", "morphogenetic=off", "optimization.max_epochs=1"]
    variable = {"MLFLOW_TRACKING_URI": "sqlite:///own.db"}
    done = run(ESPER_TRAIN, *settings, "tracking=mlflow", "hydra.job.chdir=true", cwd=tmp_path, **variable)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.partition("mlflow ui --backend-store-uri ")[2]
    assert printed.split()[0] == f"sqlite:///{tmp_path / 'own.db'}"
    assert {path.name for path in tmp_path.iterdir()} == {"outputs", "own.db", "own.db.lock"}
    assert not list((tmp_path / "outputs").rglob("*.db"))
