"""Several ranks train one network; most tests start real processes."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from esper import fit
from esper.configs.rank_env import RankEnv
from esper.errors import ConfigError
from esper.tolaria import TolariaTrainer
from esper.tolaria.ranks import Ranks
from esper.tolaria.run import open_run
from esper.tolaria.state import TrainingState
from tests.conftest import journal_of, tiny_config, use
from tests.forked import ForkedPython, suspend
from tests.oona.server import RedisServer
from tests.tamiyo.serving import process
from tests.tolaria.processes import (
    GROWS,
    LONG,
    NORMED,
    STACKS,
    await_checkpoint,
    both_ranks,
    ends,
    start_step,
    torchrun,
    train_together,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run folders of the same run with one rank and with two."""
    alone, together = (tmp_path_factory.mktemp("runs") / name for name in ("alone", "together"))
    fit(*GROWS, run_dir=alone)
    torchrun(2, *GROWS, f"hydra.run.dir={together}")
    return alone, together


@pytest.mark.parametrize(("kind", "metric"), [("step", "loss"), ("step", "metrics"), ("validation", "val_loss")])
def test_two_ranks_train_as_one_on_the_same_batches(runs: tuple[Path, Path], kind: str, metric: str) -> None:
    alone, together = ([line[metric] for line in journal_of(run_dir, kind)] for run_dir in runs)
    if metric == "metrics":
        alone, together = ([metrics["accuracy"] for metrics in measured] for measured in (alone, together))
    assert len(alone) in (4, 20)
    assert together == pytest.approx(alone, abs=1e-5)


def test_two_ranks_grow_as_one(runs: tuple[Path, Path]) -> None:
    alone, together = ([(e["decision"], e["applied"], e["outcome"]) for e in journal_of(d, "decision")] for d in runs)
    assert together == alone
    assert any(applied for _, applied, _ in together)
    (mine,), (theirs,) = (journal_of(run_dir, "judgement") for run_dir in runs)
    assert theirs["num_examples"] == mine["num_examples"]
    assert theirs["lower_bound"] == pytest.approx(mine["lower_bound"], abs=1e-5)


def test_two_ranks_start_from_an_earlier_network_as_one(runs: tuple[Path, Path], tmp_path: Path) -> None:
    alone, together = (tmp_path / name for name in ("alone", "together"))
    given = (*GROWS, "optimization.max_epochs=2", f"model.init_from={runs[0]}", "rng_seed=1")
    fit(*given, run_dir=alone)
    train_together(*given, f"hydra.run.dir={together}")
    mine, theirs = ([line["loss"] for line in journal_of(run_dir, "step")] for run_dir in (alone, together))
    assert theirs == pytest.approx(mine, abs=1e-5)
    assert mine[0] < journal_of(runs[0], "step")[0]["loss"]


def test_two_ranks_copy_blocks_as_one(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    fit(*STACKS, run_dir=alone)
    train_together(*STACKS, f"hydra.run.dir={together}")
    for kind, metric in (("step", "loss"), ("validation", "val_loss")):
        one, two = ([line[metric] for line in journal_of(run_dir, kind)] for run_dir in (alone, together))
        assert two == pytest.approx(one, abs=1e-5)
    recipe = (together / "recipe.json").read_text()
    assert recipe == (alone / "recipe.json").read_text()
    assert len(json.loads(recipe)["grafts"]) == 4


@pytest.mark.long
def test_two_ranks_with_synchronised_batch_norm_train_incubate_fork_and_judge_as_one(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    fit(*NORMED, run_dir=alone)
    train_together(*NORMED, "ranks.sync_batch_norm=true", f"hydra.run.dir={together}")
    for kind, metric in (("step", "loss"), ("validation", "val_loss"), ("fork", "loss"), ("judgement", "gain")):
        one, two = ([line[metric] for line in journal_of(run_dir, kind)] for run_dir in (alone, together))
        assert len(one) > 0, kind
        assert two == pytest.approx(one, abs=2e-4), kind


@pytest.mark.long
@pytest.mark.parametrize("is_there", [True, False])
def test_two_ranks_consult_a_shared_tamiyo_and_continue_without_her(
    runs: tuple[Path, Path], tmp_path: Path, redis_server: RedisServer, is_there: bool
) -> None:
    server = (f"redis.url=redis://127.0.0.1:{redis_server.start().port}", "redis.timeout_s=60")
    shared = (*server, "bus=redis", "morphogenetic.tamiyo=shared")
    deadline = f"morphogenetic.tamiyo_deadline_s={60 if is_there else 0.3}"
    run_dir = tmp_path / "run"
    with process(redis_server.config()) if is_there else contextlib.nullcontext():
        train_together(*GROWS, *shared, deadline, f"hydra.run.dir={run_dir}")
    alone, together = (
        [(e["decision"], e["applied"], e["outcome"]) for e in journal_of(folder, "decision")]
        for folder in (runs[0], run_dir)
    )
    if is_there:
        assert together == alone
    else:
        assert len(together) == len(journal_of(run_dir, "signals")) > 0
        assert all(outcome.startswith("missed: ") for _, _, outcome in together)


def test_only_rank_0_writes(runs: tuple[Path, Path]) -> None:
    alone, together = ({path.name for path in run_dir.rglob("*")} for run_dir in runs)
    assert together == alone
    assert len(journal_of(runs[1], "run_started")) == 1


@pytest.mark.long
def test_a_rank_that_dies_ends_the_others_with_one_error_and_the_run_resumes_with_another_number(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    processes = start_step(*[(*LONG, f"hydra.run.dir={run_dir}")] * 3)
    await_checkpoint(run_dir)
    processes[1].kill()
    codes, stderr = ends(processes)
    assert codes == [1, -signal.SIGKILL, 1]
    assert stderr.count("\n") == 1, stderr
    assert "another rank of this run has ended" in stderr
    assert "start the same command again" in stderr
    assert json.loads((run_dir / "status.json").read_text())["status"] == "failed"

    assert fit(*LONG, run_dir=run_dir).exit_code == 0
    assert "step-" in journal_of(run_dir, "run_started")[-1]["resumed_from"]
    assert [line["epoch"] for line in journal_of(run_dir, "epoch")] == list(range(1, 21))


@pytest.mark.long
def test_the_watchdog_of_a_rank_that_fails_has_ended_before_the_process_does() -> None:
    going_on, failed = both_ranks("tests.tolaria.failing_rank")
    assert "esper-ranks" in going_on
    assert "esper-ranks" not in failed


HOLDS_A_STORE = """
import sys, torch.distributed as dist
store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


def test_the_first_rank_that_fails_reports_it_though_rank_0_does_not_answer_for_a_while(tmp_path: Path) -> None:
    rank0 = ForkedPython(HOLDS_A_STORE, cwd=tmp_path, stdin=subprocess.PIPE)
    assert rank0.stdout is not None
    store = TCPStore("localhost", int(rank0.stdout.readline()), is_master=False)
    suspend(rank0)
    goes_on = threading.Timer(1.5, rank0.send_signal, [signal.SIGCONT])
    goes_on.start()
    try:
        assert Ranks(RankEnv(rank=2, size=3), store=store).report_failure("rank 1 has died")
    finally:
        goes_on.join()


@pytest.mark.long
def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    processes = start_step(*[(*LONG, "optimization.max_epochs=100000", f"hydra.run.dir={run_dir}")] * 2)
    await_checkpoint(run_dir)
    processes[1].send_signal(signal.SIGTERM)
    assert ends(processes) == ([143, 143], "")
    (ended,) = journal_of(run_dir, "run_ended")
    assert (ended["status"], ended["reason"]) == ("interrupted", "SIGTERM")
    assert run_dir.joinpath("checkpoints", f"step-{ended['step']:08d}").is_dir()


STOPS_WHEN_COPIES_BLEND = """
import os, signal
from esper.tracking import Journal

def write(self, event, write=Journal.write):
    write(self, event)
    if getattr(event, "new", "") == "blending":
        os.kill(os.getpid(), signal.SIGTERM)

Journal.write = write
"""


@pytest.mark.long
def test_copies_that_blend_in_when_two_ranks_stop_resume_as_if_they_had_not(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    blending = ("morphogenetic.copy_init=trained", "morphogenetic.blending_steps=10")
    settings = (*STACKS, "optimization.max_epochs=5", *blending)
    train_together(*settings, f"hydra.run.dir={whole}")
    processes = start_step(*[(*settings, f"hydra.run.dir={parts}")] * 2, first=STOPS_WHEN_COPIES_BLEND)
    assert ends(processes) == ([143, 143], "")
    train_together(*settings, f"hydra.run.dir={parts}")
    straight, resumed = ([line["val_loss"] for line in journal_of(run_dir, "validation")] for run_dir in (whole, parts))
    assert resumed == straight


@pytest.mark.long
def test_ranks_with_different_settings_refuse_to_train(tmp_path: Path) -> None:
    same = (*GROWS, f"hydra.run.dir={tmp_path / 'run'}")
    codes, stderr = ends(start_step(same, (*same, "optimization.weight_decay=0.1")))
    assert codes == [1, 1]
    assert stderr.count("error: ") == 1
    assert "the run differs: configuration is" in stderr


@pytest.mark.long
def test_a_checkpoint_that_rank_0_cannot_read_ends_all_ranks_with_one_error(tmp_path: Path) -> None:
    damaged = tmp_path / "step-00000001"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{}")
    overrides = (*GROWS, f"hydra.run.dir={tmp_path / 'run'}", f"checkpoint.resume_from={damaged}")
    codes, stderr = ends(start_step(overrides, overrides))
    assert codes == [1, 1]
    assert stderr.count("error: ") == 1
    assert "step-00000001/manifest.json is damaged: schema: Field required" in stderr


def test_more_ranks_than_images_in_a_batch_are_refused(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.batch_size=32: 33 ranks share each batch"):
        open_run(tiny_config(), run_dir=run_dir, state=TrainingState(), listeners=(), ranks=Ranks(RankEnv(size=33)))


@pytest.mark.parametrize(("num", "size"), [(32, 2), (33, 2), (7, 7), (100, 8), (3, 5)])
def test_shards_of_a_batch_are_contiguous_and_differ_by_one_at_most(num: int, size: int) -> None:
    shards = [range(num)[Ranks(RankEnv(rank=rank, size=size)).shard(num)] for rank in range(size)]
    assert [row for shard in shards for row in shard] == list(range(num))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_fingerprint_shows_a_change_of_the_last_bit_of_a_weight(run_dir: Path) -> None:
    async def body(trainer: TolariaTrainer) -> None:
        model = trainer.run.model
        before = model.fingerprint()
        assert model.fingerprint() == before
        weight = model.host.get_parameter("fc.weight")
        weight.data[0, 0] = weight[0, 0].nextafter(weight.new_tensor(9.0))
        after = model.fingerprint()
        assert [name for name in before if before[name] != after[name]] == ["host.fc.weight"]

    use(tiny_config(), run_dir, body)
