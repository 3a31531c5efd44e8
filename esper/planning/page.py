"""`plan.html`: a plan on one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, PackageLoader
from markupsafe import Markup

from esper.files import write_atomically
from esper.planning import plots, words
from esper.planning.forecast import MAX_EXTRAPOLATION
from esper.planning.observations import Observation
from esper.planning.record import PlanRecord
from esper.report.run_page import template_environment

__all__ = ["render", "write"]


def write(record: PlanRecord, path: Path) -> None:
    """Write the page; raises `WriteError`."""
    write_atomically(path, render(record))


def render(record: PlanRecord) -> str:
    """The page as HTML."""
    environment = template_environment()
    assert environment.loader is not None
    environment.loader = ChoiceLoader([PackageLoader("esper.planning", "."), environment.loader])
    environment.filters |= {name: getattr(words, name) for name in words.__all__}
    return environment.get_template("plan_page.html.j2").render(_content(record))


def _content(record: PlanRecord) -> dict[str, Any]:
    plan = record.plan
    question = plan.question
    grown = [option for option in plan.options if option.choice.share is not None]
    return {
        "plan": plan,
        "question": question,
        "headline": question.headline,
        "chosen": plan.chosen,
        "command": record.command,
        "signs": {option.choice: plots.marks(plan, option.choice) for option in plan.options},
        "key": [(plots.marks(plan, band.choice), words.choice_label(band.choice, question)) for band in plan.bands],
        "p_growing": sum(option.p_best for option in grown) if grown else None,
        "host_share": question.host.macs_per_epoch / question.final.macs_per_epoch,
        "max_extrapolation": MAX_EXTRAPOLATION,
        "curves": Markup(plots.curves(plan, record.observations)),
        "predictions": Markup(plots.predictions(plan)),
        "observed": [(one, words.choice_label(one.choice, question)) for one in _in_order(record)],
    }


def _in_order(record: PlanRecord) -> list[Observation]:
    names = [size.name for size in record.plan.question.sizes]
    return sorted(record.observations, key=lambda one: (one.host_macs > 0, names.index(one.size), one.macs, one.seed))
