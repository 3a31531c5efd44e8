"""Runs that branch from the trunk of a shorter one are those that train from the first step, bit for bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from esper.configs import CheckpointConfig
from esper.errors import ConfigError
from esper.tolaria.checkpoints.files import find_checkpoints
from tests.conftest import STACK, tiny_config
from tests.tolaria.checkpoints.test_resume import assert_same, train

SHORT, LONG = 3.0e7, 6.0e7
"""MACs: 3 and 6 epochs of the host."""


def host(macs: float, **changes: Any) -> Any:
    return tiny_config(
        model__depths=[2, 2], morphogenetic__enable_tamiyo=False, optimization__max_macs=macs,
        checkpoint__save_trunk=True, **changes,
    )  # fmt: skip


def grown(macs: float, **changes: Any) -> Any:
    settings = {"model__depths": [2, 2], "model__site_kinds": ["after"], "optimization__max_macs": macs, **STACK}
    return tiny_config(**settings | {"morphogenetic__schedule_by": "compute", "optimization__ema_decay": 0.9} | changes)


def trunk_of(run_dir: Path) -> str:
    return str(find_checkpoints(run_dir / "checkpoints", prefix="trunk")[0])


def counters(run_dir: Path) -> dict[str, Any]:
    result = json.loads((run_dir / "status.json").read_text())["result"]
    return {name: value for name, value in result.items() if name != "seconds"}


def test_a_longer_run_from_the_trunk_of_a_shorter_one_is_the_longer_run(tmp_path: Path) -> None:
    train(host(SHORT), tmp_path / "short")
    straight, _ = train(host(LONG), tmp_path / "straight")
    trunk = trunk_of(tmp_path / "short")
    branch, _ = train(host(LONG, checkpoint__resume_from=trunk), tmp_path / "branch")
    assert_same(straight, branch)
    assert counters(tmp_path / "straight") == counters(tmp_path / "branch")


def test_a_network_that_grows_from_the_trunk_of_its_host_is_the_one_that_grew_by_itself(tmp_path: Path) -> None:
    train(host(SHORT, optimization__ema_decay=0.9), tmp_path / "host")
    trunk = trunk_of(tmp_path / "host")
    later = grown(4 * LONG)
    straight, growth = train(later, tmp_path / "straight")
    branch, branch_growth = train(grown(4 * LONG, checkpoint__resume_from=trunk), tmp_path / "branch")
    assert growth["num_germinated"] == 2
    assert growth == branch_growth
    assert_same(straight, branch)
    assert counters(tmp_path / "straight") == counters(tmp_path / "branch")


def test_the_trunk_of_another_host_is_refused(tmp_path: Path) -> None:
    train(host(SHORT), tmp_path / "host")
    config = grown(LONG, model__depths=[2, 3], checkpoint__resume_from=trunk_of(tmp_path / "host"))
    with pytest.raises(ConfigError, match="layer2"):
        train(config, tmp_path / "other")


def test_a_branch_of_a_run_that_began_with_a_grown_network_keeps_its_length_when_it_resumes(tmp_path: Path) -> None:
    """Which is a number of epochs of the final network, what it began with included."""
    train(grown(0, optimization__max_macs=None), tmp_path / "first")
    second = grown(0, optimization__max_macs=None, model__init_from=str(tmp_path / "first"))
    train(dataclasses.replace(second, checkpoint=CheckpointConfig(save_trunk=True)), tmp_path / "second")
    branch = grown(0, optimization__max_macs=None, optimization__max_epochs=4,
                   checkpoint__resume_from=trunk_of(tmp_path / "second"))  # fmt: skip
    straight, _ = train(branch, tmp_path / "straight")
    train(branch, tmp_path / "resumed", stop_at=23)
    resumed, _ = train(branch, tmp_path / "resumed")
    assert_same(straight, resumed)
    counted = counters(tmp_path / "straight")
    assert counted == counters(tmp_path / "resumed")
    epoch_macs = 6 * 32 * 3 * counted["num_macs"]
    assert counted["total_macs"] == pytest.approx(4 * epoch_macs, rel=0.05)
