"""What a tracker logs of events, settings and growth."""

from __future__ import annotations

from esper.tracking import Journal, read
from esper.tracking.history import History
from esper.tracking.metrics import parameters, points, tags
from tests.tracking.conftest import ended, grew, started, trained


def logged(journal: Journal) -> dict[tuple[str, int], float]:
    return {(point.key, point.step): point.value for event in read(journal.path) for point in points(event)}


def test_epoch_curves_run_over_epochs_and_all_others_over_steps(journal: Journal) -> None:
    trained(journal, range(1, 9))
    values = logged(journal)
    assert [step for key, step in values if key == "train/loss"] == list(range(1, 9))
    assert [step for key, step in values if key == "val/loss"] == [4, 8]
    assert [step for key, step in values if key == "epoch/val_loss"] == [1, 2]


def test_the_size_of_the_network_is_a_curve_from_the_host_on(journal: Journal) -> None:
    started(journal)
    grew(journal, step=4, graft_id=1, num_parameters=120)
    started(journal, resumed_from="checkpoints/step-00000006", step=6)
    values = logged(journal)
    assert {at: value for at, value in values.items() if at[0] == "growth/num_parameters"} == {
        ("growth/num_parameters", 0): 100,
        ("growth/num_parameters", 4): 120,
    }


def test_a_value_that_is_not_finite_is_no_point(journal: Journal) -> None:
    trained(journal, range(1, 2), loss=float("nan"))
    values = logged(journal)
    assert ("train/loss", 1) not in values
    assert ("train/accuracy", 1) in values


def test_settings_become_text_by_dotted_name_without_credentials() -> None:
    config = {"model": {"widths": [4, 8], "pretrained": False}, "uri": "https://me:s3cret@host/", "note": "x" * 7000}
    values = parameters(config)
    assert values.pop("note") == "x" * 6000
    assert values == {"model.widths": "[4, 8]", "model.pretrained": "false", "uri": "https://host/"}


def test_what_has_grown_is_told_in_a_tag_each(journal: Journal) -> None:
    started(journal)
    grew(journal, step=4, graft_id=1, num_parameters=120, kept=True)
    grew(journal, step=4, graft_id=2, num_parameters=140)
    ended(journal, "failed", reason="the loss is not finite")
    values = tags(History.of(read(journal.path)))
    assert values["growth.1"] == (
        "conv1x1 at layer1.0:beside, step 4: kept, gain 0.1000 (lower bound 0.0500, needed 0.0160), "
        "+20 parameters, +500 MACs"
    )
    assert values["growth.2"] == "conv1x1 at layer2.0:beside, step 4: germinated, +40 parameters, +500 MACs"
    assert values["esper.reason"] == "the loss is not finite"
    assert values["mlflow.source.git.commit"] == "0123abcd"
    assert "environment.gpu" not in values
