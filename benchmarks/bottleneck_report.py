"""Tables of the planted bottlenecks, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

import torch
from scipy.stats import binomtest, spearmanr

from esper.configs import MorphogeneticConfig

__all__ = ["READERS", "gate", "recovery", "report", "top"]

Row = Mapping[str, Any]

# Measures of the need to grow at a site, the higher the greater.
READERS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "score (TINY-like)": lambda site: site["score"],
    "plain score": lambda site: site["plain_score"],
    "- effective rank / channels": lambda site: -site["effective_rank"] / site["channels"],
    "- activation variance": lambda site: -site["activation_variance"],
    "gradient norm": lambda site: site["gradient_norm"],
    "- narrowest width": lambda site: -site["narrowest_width"],
}
_ONE = "one module, gain 0.5"
_CHANNELS = {"layer1": 16, "layer2": 32, "layer3": 64}


def report(rows: Sequence[Row]) -> str:
    """All tables."""
    plants = [row for row in rows if row["harmed"]]
    controls = [row for row in rows if not row["harmed"]]
    if not plants:
        return "No harmed network has been trained yet."
    devices = ", ".join(f"{sum(row['device'] == name for row in rows)} networks on {name}" for name in _devices(rows))
    tables = [_readers(plants), _gates(plants, controls), _recoveries(plants, controls), _variants(rows)]
    return "\n\n".join([f"{devices}; torch {torch.__version__}.", *tables])


def top(row: Row, reader: str) -> str:
    """The site that a measure ranks first."""
    return max(row["scores"], key=lambda site: _read(row, reader, site))


def recovery(row: Row, outcome: Mapping[str, float], unharmed: Mapping[str, float]) -> float:
    """Share of the accuracy lost to the plant that a fork recovers."""
    base = row["no growth"]["accuracy"]
    return (outcome["accuracy"] - base) / (unharmed["accuracy"] - base)


def gate(controls: Sequence[Row], rng_seed: int) -> float | None:
    """Lowest health of the controls of all other seeds; None if there are none."""
    others = [_least(row) for row in controls if row["rng_seed"] != rng_seed]
    return min(others) if others else None


def _devices(rows: Sequence[Row]) -> list[str]:
    return sorted({row["device"] for row in rows})


def _read(row: Row, reader: str, site: str) -> float:
    measured = dict(row["scores"][site]) | {"channels": _CHANNELS[site.split(".")[0]]}
    return READERS[reader](measured)


def _least(row: Row) -> float:
    return min(site["health"] for site in row["scores"].values())


def _gain(row: Row, site: str) -> float:
    return float(row["no growth"]["loss"] - row["forks"][site]["loss"])


def _readers(plants: Sequence[Row]) -> str:
    lines = [
        f"### Is it found? {len(plants)} harmed networks, six sites each",
        "",
        "| reader | top site is the harmed one | 95 % interval | rank correlation with the gain of growing there |",
        "|---|---|---|---|",
    ]
    for reader in READERS:
        hits = sum(top(row, reader) in row["harmed"] for row in plants)
        interval = binomtest(hits, len(plants)).proportion_ci()
        ranks = [
            spearmanr([_read(row, reader, site) for site in row["forks"]], [_gain(row, site) for site in row["forks"]])
            for row in plants
            if len({_read(row, reader, site) for site in row["forks"]}) > 1
        ]
        rank = f"{mean(float(found.statistic) for found in ranks):.2f}" if ranks else "–"
        share = f"{hits} of {len(plants)} ({100 * hits / len(plants):.0f} %)"
        lines.append(f"| {reader} | {share} | {100 * interval.low:.0f} to {100 * interval.high:.0f} % | {rank} |")
    best = sum(max(row["forks"], key=lambda site, row=row: _gain(row, site)) in row["harmed"] for row in plants)
    lines += ["", f"By chance 17 %. Growing there had the largest gain of all sites in {best} of {len(plants)}."]
    by_kind = ", ".join(
        f"{kind} {sum(top(row, 'score (TINY-like)') in row['harmed'] for row in some)} of {len(some)}"
        for kind in ("squeeze", "width")
        if (some := [row for row in plants if row["kind"] == kind])
    )
    return "\n".join([*lines, f"The score by kind of plant: {by_kind}."])


def _gates(plants: Sequence[Row], controls: Sequence[Row]) -> str:
    lines = ["### Is it left alone where nothing is missing?", ""]
    for name, rows in (("harmed", plants), ("controls", controls)):
        if rows:
            found = sorted(_least(row) for row in rows)
            lines.append(
                f"Least health of a network, {name}: median {median(found):.3f}, {found[0]:.3f} to {found[-1]:.3f}."
            )
    gated = [(row, limit) for row in (*plants, *controls) if (limit := gate(controls, row["rng_seed"])) is not None]
    if gated:
        still = [_least(row) >= limit for row, limit in gated if not row["harmed"]]
        grows = [_least(row) < limit for row, limit in gated if row["harmed"]]
        lines.append(
            f"With the gate set on the controls of the other seeds: {sum(still)} of {len(still)} controls are left "
            f"alone, {sum(grows)} of {len(grows)} harmed networks grow."
        )
    default = MorphogeneticConfig().health_threshold
    left, grown = sum(_least(row) > default for row in controls), sum(_least(row) <= default for row in plants)
    lines.append(
        f"With the default health_threshold of {default}: {left} of {len(controls)} controls are left alone, {grown} "
        f"of {len(plants)} harmed networks grow."
    )
    return "\n\n".join(lines)


def _at(choose: Callable[[Row], str]) -> Callable[[Row], float]:
    """Accuracy gained by growing at the site that `choose` returns."""
    return lambda row: row["forks"][choose(row)]["accuracy"] - row["no growth"]["accuracy"]


def _recoveries(plants: Sequence[Row], controls: Sequence[Row]) -> str:
    unharmed = {row["rng_seed"]: row["no growth"] for row in controls if row["plant"] == "clean"}
    lines = [
        "### How much of the lost accuracy does one module at half-time give back?",
        "",
        "| plant | n | points lost | harmed site | score | random site | narrowest | effective rank |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [row for row in plants if row["rng_seed"] in unharmed]
    for name in [*dict.fromkeys(row["plant"] for row in rows), "all squeezes", "all"]:
        some = [row for row in rows if name in (row["plant"], "all", f"all {row['kind']}s")]
        if not some:
            continue
        lost = [unharmed[row["rng_seed"]]["accuracy"] - row["no growth"]["accuracy"] for row in some]

        def share(pick: Callable[[Row], float], some: Sequence[Row] = some, lost: Sequence[float] = lost) -> str:
            """Sum of recovered accuracy over sum of lost accuracy; shares of single small losses would be noise."""
            return f"{100 * sum(map(pick, some)) / sum(lost):.0f} %"

        cells = [
            share(_at(lambda row: row["harmed"][0])),
            share(_at(lambda row: top(row, "score (TINY-like)"))),
            share(lambda row: mean(f["accuracy"] for f in row["forks"].values()) - row["no growth"]["accuracy"]),
            share(_at(lambda row: top(row, "- narrowest width"))),
            share(_at(lambda row: top(row, "- effective rank / channels"))),
        ]
        lines.append(f"| {name} | {len(some)} | {100 * mean(lost):.1f} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Shares are of sums over networks."])


def _variants(rows: Sequence[Row]) -> str:
    unharmed = {row["rng_seed"]: row["no growth"]["accuracy"] for row in rows if row["plant"] == "clean"}
    some = [row for row in rows if row["harmed"] and row["variants"] and row["rng_seed"] in unharmed]
    controls = [row for row in rows if not row["harmed"] and row["variants"]]
    lines = [
        f"### More growth at the harmed site; the same in the middle of {len(controls)} controls",
        "",
        "| variant | n | given back | points over one module | points over no growth | the same in controls |",
        "|---|---|---|---|---|---|",
    ]
    for name in [_ONE, *dict.fromkeys(name for row in some for name in row["variants"])]:
        tried = [(row, found) for row in some if (found := _outcome(row, name)) is not None]
        lost = sum(unharmed[row["rng_seed"]] - row["no growth"]["accuracy"] for row, _ in tried)
        gains = [found - row["no growth"]["accuracy"] for row, found in tried]
        over = [found - _required(row) for row, found in tried]
        control = [
            found - row["no growth"]["accuracy"] for row in controls if (found := _outcome(row, name)) is not None
        ]
        cells = (name, len(tried), f"{100 * sum(gains) / lost:.0f} %", _points(over), _points(gains), _points(control))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _outcome(row: Row, variant: str) -> float | None:
    """Accuracy with a variant, at the harmed site or in the middle of a control."""
    if variant == _ONE:
        return _required(row)
    found = row["variants"].get(variant)
    return None if found is None else float(found["accuracy"])


def _required(row: Row) -> float:
    site = row["harmed"][0] if row["harmed"] else list(row["forks"])[2]
    return float(row["forks"][site]["accuracy"])


def _points(values: Sequence[float]) -> str:
    if not values:
        return "–"
    error = f" ± {100 * stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):+.2f}{error}"
