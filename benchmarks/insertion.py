"""How should a module be inserted, and does incubation help? Insertion × incubation on real images.

A module grows beside each block of a thin ResNet at 40 % of a training with warm-up, constant and decaying learning
rate; variants differ in nothing else. Prints a table and writes it with hardware and n.

    python benchmarks/insertion.py --data FOLDER --out FOLDER --seeds 4 --jobs 8
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.trainings import arguments, hardware, mean_and_error, train_all

BASELINE = "no growth"
_INSERTIONS = {
    "identity": ("morphogenetic.insertion=identity",),
    "identity, scale 10x faster": ("morphogenetic.insertion=identity", "morphogenetic.insertion_gain_rate=10"),
    "gain 0.3": ("morphogenetic.insertion_gain=0.3",),
    "gain 0.5": ("morphogenetic.insertion_gain=0.5",),
    "gain 1": ("morphogenetic.insertion_gain=1",),
}
_INCUBATED = {
    f"{method}, {name}": ("morphogenetic." + f"incubation={method}", *_INSERTIONS[name], *search)
    for method in ("fit", "shadow")
    for name, search in (
        ("gain 0.5", ()),
        ("identity", ("morphogenetic.alpha_search=true",)),
    )
}
_TREATMENT = {
    "gain 0.5, no warm-up": ("morphogenetic.newborn_warmup_steps=0",),
    "gain 0.5, no decay": ("morphogenetic.newborn_weight_decay=false",),
    "gain 0.5, ramp of 300 steps": ("morphogenetic.blending_steps=300",),
}
VARIANTS = {
    BASELINE: ("morphogenetic=off",),
    "from the start": ("morphogenetic.growth_from=0", "morphogenetic.schedule_at=[0.01,0.01,0.01]"),
    **_INSERTIONS,
    **_INCUBATED,
    **_TREATMENT,
}
_HOST = (
    "model=resnet_small",
    "model.widths=[8,16,32]",
    "model.depths=[1,1,1]",
    "model.site_kinds=[beside]",
    "dataset=imagefolder",
    "logging.log_interval=1000",
)
_GROWTH = (
    "morphogenetic=schedule",
    "morphogenetic.schedule_at=[0.4,0.4,0.4]",
    "morphogenetic.max_adaptations_per_epoch=3",
    "morphogenetic.adaptation_cooldown=0",
    "morphogenetic.blueprint=basic_block",
    "morphogenetic.judged=false",  # variants differ only in the insertion
)


def main() -> None:
    """Run all variants, print the table, write `insertion.json`."""
    options = arguments(__doc__.splitlines()[0]).parse_args()
    common = (*_HOST, f"dataset.data_dir={options.data}", f"optimization.max_epochs={options.epochs}")
    variants = {name: overrides if name == BASELINE else (*_GROWTH, *overrides) for name, overrides in VARIANTS.items()}
    results = train_all(
        variants,
        common,
        seeds=options.seeds,
        jobs=options.jobs,
        out=options.out,
        budget_seconds=options.budget_seconds,
    )
    print(table(results))
    record = {"hardware": hardware(), "epochs": options.epochs, "results": results}
    (options.out / "insertion.json").write_text(json.dumps(record, indent=1))


def table(results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """Markdown: test accuracy and loss of each variant; gains over the run of the same seed without growth."""
    lines = [
        "| variant | n | test accuracy, % | gain, points | test loss | MACs | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    base = results[BASELINE]
    for name, runs in results.items():
        if not runs:
            continue
        gains = [runs[seed]["test_accuracy"] - base[seed]["test_accuracy"] for seed in runs if seed in base]
        cells = [
            name,
            str(len(runs)),
            mean_and_error([run["test_accuracy"] for run in runs.values()]),
            mean_and_error(gains) if gains and name != BASELINE else "",
            f"{statistics.mean(run['test_loss'] for run in runs.values()):.4f}",
            f"{statistics.mean(run['total_macs'] for run in runs.values()) / 1e12:.1f} T",
            f"{statistics.mean(run['num_kept'] for run in runs.values()):.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
