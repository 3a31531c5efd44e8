"""The planted bottlenecks: harmed where it says, repeatable, and reported as they came out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.bottleneck_report import READERS, gate, recovery, report, top
from benchmarks.plants import PLANTS, UNITS, Plant, planted_host
from esper.kasmina import wrap
from esper.kasmina.scores import score_sites

SITES = [f"{unit}:beside" for unit in UNITS]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_host_keeps_its_sites_and_is_narrow_where_it_was_harmed(plant: Plant) -> None:
    host = planted_host(plant, rng_seed=0)
    layers = ["layer1", "layer2", "layer3"]
    model = wrap(host, layers, input_shape=(3, 16, 16), site_kinds=["beside"])
    assert [slot.site.name for slot in model.all_slots()] == SITES
    scores = score_sites(model, [(torch.randn(16, 3, 16, 16), torch.arange(16) % 10)])
    if plant.harmed:
        assert min(SITES, key=lambda site: scores[site].narrowest_width or 0) == plant.harmed[0]
    again = planted_host(plant, rng_seed=0).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in host.state_dict().items())


def row(plant: str, harmed: str | None, rng_seed: int, *, health: float, base: float, grown: float) -> dict[str, Any]:
    wanted = {site: (5.0 if site == harmed else 1.0) for site in SITES}
    measured = dict.fromkeys(("activation_variance", "gradient_norm", "plain_score", "narrowest_width"), 1.0)
    return {
        "plant": plant,
        "kind": "squeeze" if harmed else "control",
        "harmed": [harmed] if harmed else [],
        "rng_seed": rng_seed,
        "scores": {
            site: {**measured, "score": wanted[site], "effective_rank": 10.0 - i, "health": health}
            for i, site in enumerate(SITES)
        },
        "no growth": {"accuracy": base, "loss": 1.0},
        "forks": {
            site: {"accuracy": grown if site == harmed else base, "loss": 0.9 if site == harmed else 1.0 + i / 100}
            for i, site in enumerate(SITES)
        },
        "device": "a CPU",
        "variants": {"gain 1": {"accuracy": grown + 0.01, "loss": 0.8}} if harmed else {},
    }


def test_hits_recovery_and_gate_are_counted_as_they_are() -> None:
    rows = [
        row("clean", None, 0, health=0.5, base=0.70, grown=0.70),
        row("clean", None, 1, health=0.4, base=0.70, grown=0.70),
        row("squeeze 3", SITES[2], 0, health=0.1, base=0.60, grown=0.64),
        row("squeeze 3", SITES[2], 1, health=0.45, base=0.60, grown=0.62),
    ]
    assert top(rows[2], "score (TINY-like)") == SITES[2]
    assert gate(rows[:2], 0) == 0.4
    assert recovery(rows[2], rows[2]["forks"][SITES[2]], rows[0]["no growth"]) == pytest.approx(0.4)
    told = report(rows)
    assert all(reader in told for reader in READERS)
    assert "| score (TINY-like) | 2 of 2 (100 %) |" in told
    assert "gate set on the controls of the other seeds: 1 of 2 controls are left alone, 2 of 2 harmed" in told
    assert "| squeeze 3 | 2 | 10.0 | 30 % | 30 % | 5 % |" in told
    assert "| gain 1 | 2 | 40 % | +1.00 ± 0.00 | +4.00 ± 1.00 | – |" in told
