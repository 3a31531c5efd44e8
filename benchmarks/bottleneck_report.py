"""What the planted bottlenecks show, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

from scipy.stats import binomtest, spearmanr

from esper.configs import MorphogeneticConfig

__all__ = ["READERS", "gate", "recovery", "report", "top"]

Row = Mapping[str, Any]

# How much each reader of a site wants to grow there.
READERS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "score (TINY-like)": lambda site: site["score"],
    "plain score": lambda site: site["plain_score"],
    "- effective rank / channels": lambda site: -site["effective_rank"] / site["channels"],
    "- activation variance": lambda site: -site["activation_variance"],
    "gradient norm": lambda site: site["gradient_norm"],
    "- narrowest width": lambda site: -site["narrowest_width"],
}
_CHANNELS = {"layer1": 16, "layer2": 32, "layer3": 64}


def report(rows: Sequence[Row]) -> str:
    """All tables."""
    plants = [row for row in rows if row["harmed"]]
    controls = [row for row in rows if not row["harmed"]]
    if not plants:
        return "No harmed network has been trained yet."
    return "\n\n".join([_readers(plants), _gates(plants, controls), _recoveries(plants, controls), _variants(rows)])


def top(row: Row, reader: str) -> str:
    """The site that a reader would grow at."""
    return max(row["scores"], key=lambda site: _read(row, reader, site))


def recovery(row: Row, outcome: Mapping[str, float], unharmed: Mapping[str, float]) -> float:
    """Share of the accuracy lost to the plant that a fork gives back."""
    base = row["no growth"]["accuracy"]
    return (outcome["accuracy"] - base) / (unharmed["accuracy"] - base)


def gate(controls: Sequence[Row], rng_seed: int) -> float | None:
    """Health below which nothing grew on the controls of all other seeds; None without such controls."""
    others = [_least(row) for row in controls if row["rng_seed"] != rng_seed]
    return min(others) if others else None


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
        rank = mean(float(found.statistic) for found in ranks)
        share = f"{hits} of {len(plants)} ({100 * hits / len(plants):.0f} %)"
        lines.append(f"| {reader} | {share} | {100 * interval.low:.0f} to {100 * interval.high:.0f} % | {rank:.2f} |")
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
    """Points gained by growing where `choose` says."""
    return lambda row: row["forks"][choose(row)]["accuracy"] - row["no growth"]["accuracy"]


def _recoveries(plants: Sequence[Row], controls: Sequence[Row]) -> str:
    unharmed = {row["rng_seed"]: row["no growth"] for row in controls if row["plant"] == "clean"}
    lines = [
        "### How much of the lost accuracy does one module at half-time give back?",
        "",
        "| plant | n | points lost | oracle | score | random site | narrowest | effective rank |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [row for row in plants if row["rng_seed"] in unharmed]
    for name in [*dict.fromkeys(row["plant"] for row in rows), "all squeezes", "all"]:
        some = [row for row in rows if name in (row["plant"], "all", f"all {row['kind']}s")]
        if not some:
            continue
        lost = [unharmed[row["rng_seed"]]["accuracy"] - row["no growth"]["accuracy"] for row in some]

        def share(pick: Callable[[Row], float], some: Sequence[Row] = some, lost: Sequence[float] = lost) -> str:
            """Points given back over points lost, added up: single shares of a small loss are all noise."""
            return f"{100 * sum(map(pick, some)) / sum(lost):.0f} %"

        cells = [
            share(_at(lambda row: row["harmed"][0])),
            share(_at(lambda row: top(row, "score (TINY-like)"))),
            share(lambda row: mean(f["accuracy"] for f in row["forks"].values()) - row["no growth"]["accuracy"]),
            share(_at(lambda row: top(row, "- narrowest width"))),
            share(_at(lambda row: top(row, "- effective rank / channels"))),
        ]
        lines.append(f"| {name} | {len(some)} | {100 * mean(lost):.1f} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Oracle: the harmed site. Shares are of sums over networks."])


def _variants(rows: Sequence[Row]) -> str:
    unharmed = {row["rng_seed"]: row["no growth"]["accuracy"] for row in rows if row["plant"] == "clean"}
    some = [row for row in rows if row["harmed"] and row["variants"] and row["rng_seed"] in unharmed]
    lines = [
        "### More growth at the harmed site",
        "",
        "| variant | n | given back | points over one module |",
        "|---|---|---|---|",
    ]
    names = ["one module, gain 0.5", *dict.fromkeys(name for row in some for name in row["variants"])]
    for name in names:
        with_it = [(row, row["variants"].get(name, row["forks"][row["harmed"][0]])) for row in some]
        if name not in names[:1]:
            with_it = [(row, found) for row, found in with_it if name in row["variants"]]
        if not with_it:
            continue
        lost = sum(unharmed[row["rng_seed"]] - row["no growth"]["accuracy"] for row, _ in with_it)
        given = sum(found["accuracy"] - row["no growth"]["accuracy"] for row, found in with_it)
        over = [100 * (found["accuracy"] - row["forks"][row["harmed"][0]]["accuracy"]) for row, found in with_it]
        error = stdev(over) / len(over) ** 0.5 if len(over) > 1 else float("nan")
        lines.append(f"| {name} | {len(with_it)} | {100 * given / lost:.0f} % | {mean(over):+.2f} ± {error:.2f} |")
    return "\n".join(lines)
