"""`report.html`: one run on one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from esper.files import write_atomically
from esper.report import architecture, run_plots
from esper.report.figure import embed
from esper.report.jumps import jumps
from esper.report.lexicon import words_in
from esper.report.run_record import RunRecord, read_run
from esper.tracking import formatting
from esper.tracking.samples import read_samples

__all__ = ["render", "template_environment", "write"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{}'"
"""Content Security Policy of a page: nothing from the network, and no script but ours."""
_MAX_CLASSES = 20
"""Most classes that are shown."""
_MAX_NAMED = 3
"""Most sites or modules that a sentence names."""


def write(run_dir: Path) -> Path:
    """Write `report.html` into the folder of a run, which may still be running; returns its path.

    Raises:
        RunError: the journal is missing or damaged.
    """
    target = run_dir / "report.html"
    write_atomically(target, render(run_dir))
    return target


def render(run_dir: Path) -> str:
    """The page of a run, see `write`."""
    return template_environment().get_template("run_page.html.j2").render(_content(read_run(run_dir)))


def template_environment() -> Environment:
    """Jinja environment for this package's templates: strict, autoescaping, with `formatting` as filters."""
    environment = Environment(
        loader=PackageLoader("esper.report", "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(formatting, name) for name in formatting.__all__}
    environment.filters |= {
        "stacked": _stacked,
        "health_colour": run_plots.health_colour,
        "tail": architecture.tail,
        "times": _times,
    }
    script = (Path(__file__).parent / "plot.js").read_text(encoding="utf-8")
    environment.globals["script"] = Markup(script)
    environment.globals["policy"] = _POLICY.format(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode())
    environment.globals["words_in"] = words_in
    return environment


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _stacked(table: str) -> Markup:
    """A table that scrolls where it is too wide, and whose cells carry the heading of their column.

    Narrow screens show a row as a list.
    """
    headings = [re.sub("<[^>]*>", "", heading) for heading in re.findall(r"<th\b[^>]*>(.*?)</th>", table, re.DOTALL)]
    rows = re.split(r"(?=<tr)", table)
    for number, row in enumerate(rows):
        left = iter(headings)
        rows[number] = re.sub(r"<td\b", lambda found: f'{found[0]} data-label="{next(left, "")}"', row)  # noqa: B023
    body = "".join(rows).replace("<table", '<table data-stacked=""', 1)
    return Markup('<div class="scroll">{}</div>').format(Markup(body))


def _content(record: RunRecord) -> dict[str, Any]:
    history, consultations = record.history, record.of_kind("signals")
    size = _size(record)
    return {
        "run": record,
        "started": history.started,
        "modules": history.modules,
        "headline": _headline(record),
        "leading": history.headline,
        "others": history.metrics[1:],
        "classes": _classes(record),
        "pictures": _pictures(record),
        "confusion": (record.result or {}).get("test_confusion") or [],
        "size": size,
        "plots": [(title, embed(figure)) for title, figure in run_plots.curves(record)],
        "jumps": list(jumps(record)),
        "health": run_plots.health_map(record)
        if any(signal["health"] is not None for event in consultations for signal in event["signals"])
        else None,
        "forest": Markup(run_plots.forest(history.modules))
        if any(module.judgement for module in history.modules)
        else None,
        "drawings": _drawings(record, size),
        "requests": _requests(record),
        "num_consultations": len(consultations),
        "notices": [*record.of_kind("growth_undone"), *record.of_kind("notice")],
        "costs": _costs(record),
        "surgery_s": sum(event["duration_s"] for event in record.of_kind("surgery")),
    }


def _headline(record: RunRecord) -> str:
    """The outcome in one sentence."""
    if record.history.started is None:
        return "This run has not started training."
    grown = record.history.summary.capitalize()
    kept = [f"{module.blueprint_id} at {module.site}" for module in record.history.modules if module.is_kept]
    if 0 < len(kept) <= _MAX_NAMED:
        grown += f" ({', '.join(kept)})"
    result = record.result
    if result is None or record.status != "finished":
        status = {"running": "is still running", "failed": "failed"}.get(record.status, f"was {record.status}")
        reason = f": {record.reason}" if record.reason else ""
        return f"{grown}. The run {status}{reason}."
    size = formatting.change(result["num_parameters_before"], result["num_parameters"])
    changed = f"{size} parameters" if result["num_kept"] else "the host's size"
    leading = record.history.headline
    figure = formatting.metric(result[f"test_{leading.name}"], leading)
    sentence = f"{grown}: {figure} test {leading.label} with {changed}."
    return sentence.replace(" %", "\u00a0%")


def _classes(record: RunRecord) -> list[tuple[str, float | None]]:
    """The classes with their accuracies in the test: all up to 20, else the 20 worst."""
    found = list(((record.result or {}).get("test_class_accuracy") or {}).items())
    if len(found) <= _MAX_CLASSES:
        return found
    return sorted(found, key=lambda item: 2.0 if item[1] is None else item[1])[:_MAX_CLASSES]


def _pictures(record: RunRecord) -> list[tuple[str, list[dict[str, Any]]]]:
    """Title and entries of validation images, misclassified and not; empty for a run that has not finished."""
    found = read_samples(record.run_dir) if record.result is not None else []
    wrong = [one for one in found if one["true_class"] != one["predicted_class"]]
    right = [one for one in found if one["true_class"] == one["predicted_class"]]
    return [(title, entries) for title, entries in (("Wrong", wrong), ("Right", right)) if entries]


def _requests(record: RunRecord) -> list[dict[str, Any]]:
    """The decisions that requested a change: event, the least healthy sites at that time, and the module that grew."""
    requests = []
    for decision in record.of_kind("decision"):
        if not decision["decision"]["should_adapt"]:
            continue
        scored = [event["signals"] for event in record.of_kind("signals") if event["step"] == decision["step"]]
        measured = [signal for signal in (scored[-1] if scored else []) if signal["health"] is not None]
        born = [module for module in record.history.modules if module.step == decision["step"]]
        site = decision["decision"]["site"]
        modules = [module for module in born if decision["applied"] and site in (None, module.site)]
        lowest = sorted(measured, key=lambda signal: signal["health"])[:_MAX_NAMED]
        requests.append({"event": decision, "lowest": lowest, "module": modules[0] if modules else None})
    return requests


def _costs(record: RunRecord) -> list[tuple[str, int]]:
    """MACs spent so far, by purpose."""
    result = record.result
    if result is None:
        kinds = {"scoring sites": "signals", "short forks": "fork", "judging modules": "judgement"}
        return [(name, sum(event["cost_macs"] for event in record.of_kind(kind))) for name, kind in kinds.items()]
    discarded = result["discarded_macs"]
    costs = [("training", result["train_macs"] - discarded), ("training culled modules", discarded)]
    costs.append(("scoring sites", result["scoring_macs"]))
    for name, key in (("short forks", "forking"), ("incubating modules", "incubation")):
        if result[f"{key}_macs"]:
            costs.append((name, result[f"{key}_macs"]))
    return [*costs, ("judging modules", result["judging_macs"])]


def _size(record: RunRecord) -> dict[str, int]:
    """Parameters and MACs of the host and of the current network."""
    started, surgery = record.history.started or {}, [s for s in record.of_kind("surgery") if s["committed"]]
    before = {name: started.get(name, 0) for name in ("num_parameters", "num_macs")}
    after = {name: surgery[-1][f"{name}_after"] if surgery else before[name] for name in before}
    return {f"{name}_before": value for name, value in before.items()} | after


def _drawings(record: RunRecord, size: dict[str, int]) -> list[tuple[str, architecture.Drawing, int, int]]:
    """Title, drawing, parameters and MACs of the network before and after growth; empty without sites."""
    host = architecture.blocks(record)
    if not host:
        return []
    before, after = architecture.draw(host, grown=False), architecture.draw(host, grown=True)
    return [
        ("Before", before, size["num_parameters_before"], size["num_macs_before"]),
        ("After", after, size["num_parameters"], size["num_macs"]),
    ]
