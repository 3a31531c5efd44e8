"""The rank of this process, from the environment variables of torchrun or of a SLURM job step."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from esper.errors import ConfigError

__all__ = ["RankEnv", "rank_env"]

_FIRST_PORT = 20_000
_NUM_PORTS = 10_000  # below Linux's ephemeral ports


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnv:
    """A rank of a distributed training.

    Attributes:
        rank: from 0.
        size: number of ranks.
        local_rank: rank on its machine, from 0.
        address: host name or IP address of rank 0's machine.
        port: port that rank 0 listens on.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "localhost"
    port: int = 0


def rank_env(environment: Mapping[str, str] = os.environ) -> RankEnv:
    """Read the variables; without any, this is the only rank.

    Raises:
        ConfigError: the environment is incomplete or contradicts itself.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _checked(environment, rank="RANK", size="WORLD_SIZE", local_rank="LOCAL_RANK")
    # Not SLURM_NTASKS, which is also set in a batch script, which is a single process.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        named = {
            "MASTER_ADDR": _first_host(environment.get("SLURM_STEP_NODELIST", "")),
            "MASTER_PORT": _port(environment),
        }
        return _checked(
            named | dict(environment), rank="SLURM_PROCID", size="SLURM_STEP_NUM_TASKS", local_rank="SLURM_LOCALID"
        )
    return RankEnv()


def _checked(environment: Mapping[str, str], *, rank: str, size: str, local_rank: str) -> RankEnv:
    try:
        env = RankEnv(
            rank=int(environment[rank]),
            size=int(environment[size]),
            local_rank=int(environment[local_rank]),
            address=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]),
        )
    except KeyError as error:
        raise ConfigError(
            f"{size}={environment.get(size)}: the environment lacks {error.args[0]}; start with torchrun or srun, or "
            f"unset {size} to train with one rank"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{size}={environment[size]}: {error}; start with torchrun or srun") from None
    if not 0 <= env.rank < env.size:
        raise ConfigError(f"{rank}={env.rank}: {size} is {env.size}, so it must be 0 to {env.size - 1}")
    return env


def _first_host(nodes: str) -> str:
    """The first host of SLURM's `node[003-010,12],other`: the machine of rank 0."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first.group()) or "localhost"


def _port(environment: Mapping[str, str]) -> str:
    """A port that all ranks of a step share, and other steps and jobs do not."""
    job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return str(_FIRST_PORT + (job + 97 * step) % _NUM_PORTS)
