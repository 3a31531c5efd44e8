from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from esper.configs import MorphogeneticConfig
from esper.contracts.events import Judged, Scored, SurgeryEnded
from esper.contracts.health import HealthSignal
from esper.errors import RunError, WriteError
from esper.simic.fit import MIN_OUTCOMES, fit, main, training_examples
from esper.tamiyo.policies.learned import FEATURES, features, load_policy
from esper.tracking import Journal
from esper.urza import get
from tests.tamiyo.test_policies import signal


def grow(
    journal: Journal,
    graft_id: int,
    *,
    signals: Sequence[HealthSignal],
    gain: float,
    committed: bool = True,
    blueprint: str = "conv1x1",
) -> None:
    """What a run writes when it germinates a module at the first site and judges it later."""
    site = signals[0].site
    entries = [dataclasses.asdict(s) for s in signals]
    journal.write(Scored(step=1, epoch=4, signals=entries, cost_macs=0, cost_s=0.0))
    journal.write(
        SurgeryEnded(
            step=1, graft_id=graft_id, action="germinate", site=site, blueprint_id=blueprint, committed=committed,
            error=None, num_parameters_before=0, num_parameters_after=0, num_macs_before=0, num_macs_after=0,
            duration_s=0.0,
        )
    )  # fmt: skip
    journal.write(
        Judged(
            step=9, epoch=6, graft_id=graft_id, site=site, blueprint_id="conv1x1", loss_off=2.0, loss_on=2.0 - gain,
            gain=gain, lower_bound=gain, threshold=0.04, confidence=0.95, num_examples=9, kept=True,
            added_parameters=0, added_macs=0, cost_macs=0, cost_s=0.0,
        )
    )  # fmt: skip


def write_run(folder: Path, num_grown: int) -> Path:
    """A run in which the relative gain was a hundredth of the log score."""
    journal = Journal(folder / "journal.jsonl")
    for k in range(1, num_grown + 1):
        grow(
            journal,
            k,
            signals=[signal("a:after", score=math.exp(k)), signal("b:after", score=1.0)],
            gain=2.0 * 0.01 * k,
        )
    journal.close()
    return folder


def test_an_outcome_is_what_tamiyo_saw_and_the_relative_gain_judged_later(tmp_path: Path) -> None:
    write_run(tmp_path, 1)
    signals = [signal("a:after", score=math.exp(1)), signal("b:after", score=1.0)]
    [(seen, gain)] = training_examples(tmp_path / "journal.jsonl")
    assert seen == pytest.approx(features(signals[0], signals, get("conv1x1")))
    assert gain == pytest.approx(0.01)


def test_what_was_not_measured_not_committed_judged_without_a_number_or_a_copy_teaches_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    grow(journal, 1, signals=[signal("a:after", score=None)], gain=0.1)
    grow(journal, 2, signals=[signal("a:after", score=1.0)], gain=0.1, committed=False)
    grow(journal, 3, signals=[signal("a:after", score=1.0)], gain=math.nan)
    grow(journal, 4, signals=[signal("a:after", score=1.0)], gain=0.1, blueprint="copy")
    journal.close()
    assert training_examples(tmp_path / "journal.jsonl") == []


def test_judgements_out_of_order_find_the_signals_of_their_own_kernel(tmp_path: Path) -> None:
    write_run(tmp_path, 2)
    path = tmp_path / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], *lines[3:5], lines[2], lines[5]]))
    found = training_examples(path)
    assert [seen[0] for seen, _ in found] == pytest.approx([1.0, 2.0])
    assert [gain for _, gain in found] == pytest.approx([0.01, 0.02])


def test_the_fit_is_the_ridge_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, len(FEATURES), generator=generator, dtype=torch.float64)
    truth = torch.linspace(-1, 1, len(FEATURES), dtype=torch.float64)
    rows = [(x.tolist(), float(x @ truth) + 0.5) for x in inputs]
    model = fit(rows, ridge=1e-9)
    assert torch.allclose(model["weights"] / model["deviation"], truth, atol=1e-6)
    shrunk = fit(rows, ridge=1e9)
    assert shrunk["weights"].abs().max() < 1e-6
    assert float(shrunk["bias"]) == pytest.approx(sum(gain for _, gain in rows) / 40)


def test_tamiyo_reads_what_simic_wrote_and_prefers_what_gained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / name, MIN_OUTCOMES) for name in ("r1", "r2")]
    out = tmp_path / "new" / "policy.safetensors"
    assert main(runs, out) == 0
    assert f"{2 * MIN_OUTCOMES} judged modules of 2 runs" in capsys.readouterr().out
    policy = load_policy(out, MorphogeneticConfig(blueprint="conv1x1"))
    decision = policy.decide([signal("a:after", score=math.exp(6)), signal("b:after", score=1.0)])
    assert (decision.site, decision.blueprint_id) == ("a:after", "conv1x1")
    assert decision.confidence == pytest.approx(0.06, abs=0.01)


def test_too_few_outcomes_are_an_error_that_counts_them(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 2)
    with pytest.raises(RunError, match=f"2 judged modules in 1 runs; at least {MIN_OUTCOMES} are needed"):
        main([tmp_path], tmp_path / "p.safetensors")
    assert not (tmp_path / "p.safetensors").exists()


@pytest.mark.parametrize("name", ["file/policy.safetensors", "folder"])
def test_a_policy_that_cannot_be_written_is_an_error_in_one_line(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", MIN_OUTCOMES)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match=rf"cannot .*{name.partition('/')[0]}"):
        main([run], tmp_path / name)


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no journal\.jsonl in"):
        main([tmp_path], tmp_path / "p.safetensors")


def test_signals_of_another_version_are_an_error_that_names_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    event = {"kind": "signals", "time_unix_s": 1.0, "step": 1, "epoch": 1, "cost_macs": 1, "cost_s": 0.1}
    path.write_text(
        json.dumps({**event, "signals": [{**dataclasses.asdict(signal("a:after", score=1.0)), "later": 1}]}) + "\n"
    )
    with pytest.raises(RunError, match=r"journal\.jsonl: signals of another version"):
        training_examples(path)
    path.write_text(json.dumps({**event, "signals": [{"site": "a:after"}]}) + "\n")
    with pytest.raises(RunError, match=r"line 1 is damaged: signals\.signals\.0\.layer: Field required"):
        training_examples(path)
