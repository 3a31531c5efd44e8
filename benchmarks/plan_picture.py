"""The plan in docs/plan.png: a ResNet on CIFAR-10, from the trainings of results/copies_pilot.json up to 20 epochs.

    python benchmarks/plan_picture.py plan.html
    chromium --headless --hide-scrollbars --window-size=1120,1418 --screenshot=plan.png plan.html

It is asked for the compute of 40 epochs of the final network. The trainings are finished runs: nothing is charged.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.places import new_file
from esper.contracts.metrics import ACCURACY
from esper.costs import training_macs
from esper.planning import page
from esper.planning.judge import judge
from esper.planning.observations import Observation, Question, Size
from esper.planning.record import PlanRecord

_RUNS = Path(__file__).with_name("results") / "copies_pilot.json"
_SEEN, _ASKED = (10, 20), 40
"""Budgets in epochs of the final network."""
_EPOCH_IMAGES, _VAL_IMAGES = 316 * 128, 2250
_SIZES = tuple(
    Size(name=name, label=label, macs_per_epoch=training_macs(_EPOCH_IMAGES, macs), num_parameters=parameters)
    for name, label, macs, parameters in (
        ("host", "host", 26_657_408, 175_258),
        ("between", "a size in between", 40_813_184, 272_474),
        ("final", "final size", 54_968_960, 369_690),
    )
)
_STATIC = {f"static, {num} blocks a stage": size.name for num, size in zip((2, 3, 4), _SIZES, strict=True)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=new_file, metavar="PAGE.html")
    options = parser.parse_args(arguments)
    rows = json.loads(_RUNS.read_text())["runs"]
    seen = tuple(_observed(row) for row in rows if row["final_epochs"] in _SEEN)
    question = Question(
        sizes=_SIZES, headline=ACCURACY, macs=_ASKED * _SIZES[-1].macs_per_epoch, num_examples=_VAL_IMAGES
    )
    page.write(PlanRecord(plan=judge(question, seen), observations=seen), options.page)


def _observed(row: Mapping[str, Any]) -> Observation:
    is_grown = row["arm"] not in _STATIC
    host_macs = row["epochs"][0] * _SIZES[0].macs_per_epoch if is_grown else 0.0
    return Observation(
        size="final" if is_grown else _STATIC[row["arm"]],
        seed=100 * row["rng_seed"] + row["final_epochs"],  # no two budgets share a trunk
        macs=row["total_macs"],
        host_macs=host_macs,
        loss=row["val_loss"],
        figure=row["val_accuracy"],
        is_pilot=False,
    )


if __name__ == "__main__":
    main()
