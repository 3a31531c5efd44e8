"""The scaling benchmark measures what it says, with real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling
from benchmarks.measuring import paired_ratio

SMALL = (
    "--device=cpu", "--ranks", "2", "--networks", "resnet_small:8:8", "--rounds=2", "--block-seconds=0.01",
    "--growths=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("scaling") / "scaling.json"
    with pytest.raises(SystemExit, match="0"):
        scaling.main(["--out", str(out), *SMALL])
    return {cell["kind"]: cell for cell in json.loads(out.read_text())["cells"]}


@pytest.mark.long
def test_every_cell_is_measured_the_most_important_first(cells: dict[str, dict[str, Any]]) -> None:
    assert [(kind, cell["status"]) for kind, cell in cells.items()] == [
        ("per rank", "done"), ("global", "done"), ("growth", "done"),
    ]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("kind", "arms"), [("per rank", ["off", "late", "default"]), ("global", ["off", "late"])])
def test_efficiency_is_the_share_of_so_many_times_one_process(
    cells: dict[str, dict[str, Any]], kind: str, arms: list[str]
) -> None:
    found = cells[kind]
    assert list(found["images_per_s"]) == list(found["efficiency"]) == arms
    alone = found["images_per_s"]["off"]["alone"]
    for arm, speeds in found["images_per_s"].items():
        assert len(speeds.get("alone", alone)) == len(speeds["together"]) == 2
        expected = paired_ratio(speeds["together"], speeds.get("alone", alone)).mean / 2
        assert found["efficiency"][arm]["mean"] == pytest.approx(expected)


@pytest.mark.long
def test_dormant_seeds_are_compared_with_none_alone_and_together(cells: dict[str, dict[str, Any]]) -> None:
    assert [ratio["n"] for ratio in cells["per rank"]["default_to_off"].values()] == [2, 2]
    assert cells["global"]["off_to_late"]["n"] == cells["global"]["share_to_alone"]["n"] == 2


@pytest.mark.long
def test_after_a_growth_all_processes_have_the_same_weights_which_go_on_changing(
    cells: dict[str, dict[str, Any]],
) -> None:
    (growth,) = cells["growth"]["growths"]["together"]
    assert growth["is_finite"]
    for hashes in (growth["hashes"], growth["later_hashes"]):
        assert len(hashes) == 2
        assert len(set(hashes)) == 1
    assert growth["hashes"] != growth["later_hashes"]
    assert growth["pause_s"] > growth["deciding_s"] > growth["scoring_s"] > 0  # of the same process here


def test_a_cell_after_the_budget_is_not_measured_and_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scaling.json"
    with pytest.raises(SystemExit, match="0"):
        scaling.main(["--out", str(out), *SMALL, "--budget-seconds=0"])
    assert json.loads(out.read_text())["cells"] == []
    assert "not started, the budget was used up: resnet_small, 8 px, per rank, 2 ranks" in capsys.readouterr().out


@pytest.mark.long
def test_a_cell_that_fails_does_not_stop_the_next(tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    with pytest.raises(SystemExit, match="1"):
        scaling.main(["--out", str(out), *SMALL, "--ranks", "1", "--networks", "no_such:8:8"])
    found = {cell["kind"]: cell["status"] for cell in json.loads(out.read_text())["cells"]}
    assert found == {"per rank": "failed", "growth": "failed"}
