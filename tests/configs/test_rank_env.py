from __future__ import annotations

import pytest

from esper.configs.rank_env import RankEnv, rank_env
from esper.errors import ConfigError

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
STEP = {
    "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[007-009,12],other3",
}  # fmt: skip


def test_without_variables_there_is_one_rank() -> None:
    assert rank_env({}) == RankEnv(rank=0, size=1)


def test_torchruns_variables_give_the_rank() -> None:
    assert rank_env(TORCHRUN | STEP) == RankEnv(rank=5, size=8, local_rank=1, address="node7", port=29500)


def test_the_ranks_of_a_slurm_step_meet_at_its_first_machine() -> None:
    env = rank_env(STEP)
    assert (env.rank, env.size, env.local_rank, env.address) == (3, 4, 1, "gpu007")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("one", "one"),
        ("a1,a2", "a1"),
        ("rack[2-3]-n[04,09]", "rack2-n04"),
        ("n-1.example.org,m[1-2]", "n-1.example.org"),
    ],
)
def test_the_first_machine_is_parsed_from_slurms_node_list(nodes: str, first: str) -> None:
    assert rank_env(STEP | {"SLURM_STEP_NODELIST": nodes}).address == first


def test_steps_of_one_job_have_different_ports() -> None:
    assert (
        rank_env(STEP).port
        == rank_env(STEP | {"SLURM_PROCID": "0"}).port
        != rank_env(STEP | {"SLURM_STEP_ID": "1"}).port
    )


def test_master_addr_and_port_override_those_of_a_step() -> None:
    env = rank_env(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert (env.address, env.port) == ("10.0.0.1", 4000)


def test_a_batch_script_with_several_tasks_is_one_process() -> None:
    assert rank_env({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).size == 1


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"MASTER_ADDR": None}, "WORLD_SIZE=8: the environment lacks MASTER_ADDR; start with torchrun or srun"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE=many: "),
        ({"RANK": "8"}, "RANK=8: WORLD_SIZE is 8, so it must be 0 to 7"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(wrong: dict[str, str | None], line: str) -> None:
    environment = {key: value for key, value in (TORCHRUN | wrong).items() if value is not None}
    with pytest.raises(ConfigError, match=line):
        rank_env(environment)
