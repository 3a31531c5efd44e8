"""What `growing.py` trains: its studies, each one or several comparisons of arms at equal compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = [
    "EPOCHS",
    "FROM_TRUNK",
    "MEGABYTES",
    "RESNET18_STACKED",
    "STATIC",
    "STUDIES",
    "TRUNK",
    "Comparison",
    "Overrides",
]

STATIC = ("host", "between", "final", "continue", "scratch")
"""Arms that do not grow; the best of them is what growing has to beat."""
TRUNK = "trunk"
"""The arm whose network, before its decay, the other arms of `capacity` start from."""

FROM_TRUNK = "model.init_from=TRUNK"
"""Replaced by the folder of the trunk with the same seed."""

EPOCHS, MEGABYTES = "E", "MB"
"""Units of budgets: epochs of the final network, or millions of bytes of text through it."""

Overrides = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Arms at equal compute, paired by seed.

    Attributes:
        model: overrides of all arms.
        grown: those of a network that grows. What it ends with is the final network, whose epochs are the budgets.
        arms: overrides of each arm, besides `model`.
        budgets: (budgets, number of seeds), the most important first.
        unit: of the budgets: `EPOCHS` or `MEGABYTES`.
        recipe: data and optimization, the same for all arms.
        epoch_share: text: growth waits for the end of an epoch; one is as long as the host needs for this share of the
            budget.
        figure: what arms are compared by: accuracy or loss.
        reference: arm that the others are compared with besides the best static one.
        trunk_budget: budget of the arm `trunk`, which runs first.
    """

    model: Overrides
    grown: Overrides
    arms: Mapping[str, Overrides]
    budgets: Sequence[tuple[Sequence[float], int]]
    unit: str = EPOCHS
    recipe: Overrides = (
        "dataset=imagefolder", "dataset.image_size=32", "dataset.batch_size=128", "optimization=sgd",
        "optimization.learning_rate=0.1", "optimization.decay_fraction=0.3",
    )  # fmt: skip
    epoch_share: float | None = None
    figure: str = "accuracy"
    reference: str | None = None
    trunk_budget: float | None = None


_OFF = ("morphogenetic=off",)
_SMALL = ("model=resnet_small", "model.widths=[16,32,64]")
RESNET18_STACKED = Path(__file__).with_name("resnet18_stacked.json")


def _depth(blocks: int) -> Overrides:
    return (f"model.depths=[{blocks},{blocks},{blocks}]",)


def _stack(*at: float) -> Overrides:
    return "morphogenetic=stack", f"morphogenetic.schedule_at=[{','.join(map(str, at))}]"


def _stages(policy: str, num: int) -> Overrides:
    """Deepen so many stages, which the policy chooses."""
    return *_GROWN, f"morphogenetic.policy={policy}", f"morphogenetic.schedule_at=[{','.join(['0.3'] * num)}]"


def _with_settings(grown: Overrides, *settings: str) -> dict[str, Overrides]:
    """A network that grows, and the same with each setting of `morphogenetic` changed."""
    return {"grown": grown, **{setting: (*grown, f"morphogenetic.{setting}") for setting in settings}}


def _replay(*overrides: str) -> Overrides:
    return "morphogenetic=replay", f"morphogenetic.recipe_path={RESNET18_STACKED}", *overrides


_GROWN = (*_depth(2), *_stack(0.3))
_SIZES = {
    "host": (*_depth(2), *_OFF),
    "between": (*_depth(3), *_OFF),
    "final": (*_depth(4), *_OFF),
    "grown": _GROWN,
}
_LATE = (*_depth(2), *_stack(0.5))
"""The share with the lowest validation loss in `ablation`, seeds 200 to 204; so `late` is for other seeds."""
_FOUR_TIMES = (*_depth(2), *_stack(0.15, 0.35))
_STACK_TOKENS = (*_stack(0.3), "morphogenetic.copy_init=trained", "morphogenetic.newborn_warmup_steps=50")
"""Of transformers, which have no batch norm whose gain copies could share."""


def _sizes(host: int, between: int, final: int, grown: Overrides) -> dict[str, Overrides]:
    """The arms of a chain of so many blocks."""
    static = {"host": host, "between": between, "final": final}
    return {**{arm: (f"model.depth={depth}", *_OFF) for arm, depth in static.items()}, "grown": grown}


_GPT_GROWN = ("model.depth=4", *_STACK_TOKENS)


def _vit(*, width: int, blocks: int, budgets: Sequence[tuple[Sequence[float], int]]) -> Comparison:
    """A ViT of so many blocks, with heads of 16, that grows to twice as many.

    Few, narrow blocks are limited by their capacity soon, so that the curves of host and final network cross within
    reach; batches are of 256, since a short training lacks steps. The recipe is DeiT's (arXiv:2012.12877), with one
    operation of RandAugment: images that are never the same twice keep a pass over them worth its compute, which is
    what growing saves.
    """
    grown = (f"model.depth={blocks}", *_STACK_TOKENS)
    return Comparison(
        model=("model=vit", f"model.width={width}", f"model.heads={width // 16}"),
        grown=grown,
        arms=_sizes(blocks, blocks * 3 // 2, 2 * blocks, grown),
        budgets=budgets,
        recipe=(
            "dataset=imagefolder", "dataset.image_size=32", "dataset.batch_size=256", "dataset.mixup_alpha=0.8",
            "dataset.cutmix_alpha=1.0", "dataset.random_erasing=0.25", "dataset.rand_augment_num_ops=1",
            "task.label_smoothing=0.1", "optimization=adamw", "optimization.learning_rate=2e-3",
            "optimization.warmup_epochs=2", "optimization.decay_fraction=0.3", "compile_model=true",
            "logging.log_interval=1000",
        ),
        reference="final",
    )  # fmt: skip


def _vit_ablation() -> Comparison:
    """How the ViT of 2 blocks may grow, at the budget of its claim."""
    vit = _vit(width=64, blocks=2, budgets=[((25,), 3)])
    arms = _with_settings(
        vit.grown,
        "copy_init=zeroed", "copy_init=fresh", "copy_order=interleave", "schedule_at=[0.15]", "schedule_at=[0.5]",
        "copy_optimizer_state=true", "newborn_warmup_steps=0", "newborn_warmup_steps=300",
    )  # fmt: skip
    return replace(vit, arms=arms, reference="grown")


STUDIES: dict[str, dict[str, Comparison]] = {
    "claims": {
        "claims": Comparison(
            model=_SMALL, grown=_GROWN, arms=_SIZES, budgets=[((20, 40), 12), ((10, 80), 4)], reference="final"
        )
    },
    "late": {
        "late": Comparison(
            model=_SMALL, grown=_LATE, arms=_SIZES | {"grown": _LATE}, budgets=[((20, 40), 12)], reference="final"
        )
    },
    "ablation": {
        "ablation": Comparison(
            model=_SMALL,
            grown=_GROWN,
            arms=_with_settings(
                _GROWN,
                "copy_init=trained", "copy_init=zeroed", "copy_init=fresh", "copy_order=interleave",
                "schedule_at=[0.15]", "schedule_at=[0.25]", "schedule_at=[0.35]", "schedule_at=[0.5]",
                "copy_optimizer_state=true", "newborn_warmup_steps=0",
            ),
            budgets=[((40,), 5)],
            reference="grown",
        ),
        "ablation, four times the depth": Comparison(
            model=_SMALL,
            grown=_FOUR_TIMES,
            arms={
                "host": (*_depth(2), *_OFF),
                "between": (*_depth(4), *_OFF),
                "final": (*_depth(8), *_OFF),
                "grown": _FOUR_TIMES,
            },
            budgets=[((40,), 5)],
            reference="final",
        ),
    },
    "controller": {
        "controller": Comparison(
            model=_SMALL,
            grown=_GROWN,
            arms={
                "all stages": _GROWN,
                **{
                    f"{policy}, {num} of 3 stages": _stages(policy, num)
                    for num in (1, 2)
                    for policy in ("heuristic", "random", "schedule")
                },
            },
            budgets=[((40,), 5)],
            reference="all stages",
        )
    },
    "capacity": {
        "capacity": Comparison(
            model=_SMALL,
            grown=_GROWN,
            arms={
                TRUNK: (*_depth(2), *_OFF, "checkpoint.save_trunk=true", "fresh=true"),
                "continue": (*_depth(2), *_OFF, FROM_TRUNK),
                "scratch": (*_depth(4), *_OFF),
                "grown": (*_depth(2), *_stack(0.1), FROM_TRUNK),
            },
            budgets=[((10, 20), 12)],
            reference="continue",
            trunk_budget=20,
        )
    },
    "resnet18": {
        "resnet18": Comparison(
            model=("model=resnet18",),
            grown=_stack(0.3),
            arms={
                "host": _OFF,
                "between": _replay("morphogenetic.recipe_fraction=0.5"),
                "final": _replay(),
                "grown": _stack(0.3),
                "aggressive": ("morphogenetic=aggressive",),
            },
            budgets=[((15, 30), 4)],
            reference="host",
        )
    },
    "small": {
        "small": Comparison(
            model=("model=resnet_small", "model.widths=[8,16,32]"),
            grown=_GROWN,
            arms=_SIZES,
            budgets=[((40, 80), 12)],
            reference="final",
        )
    },
    "gpt": {
        "gpt": Comparison(
            model=("model=gpt", "model.width=256", "model.heads=4"),
            grown=_GPT_GROWN,
            arms=_sizes(4, 6, 8, _GPT_GROWN),
            budgets=[((90,), 12), ((150,), 12), ((50, 270), 4)],
            unit=MEGABYTES,
            recipe=(
                "dataset=text", "dataset.split_by=given", "dataset.document_separator=''", "dataset.context=256",
                "dataset.batch_size=128", "optimization=adamw", "optimization.learning_rate=2e-3",
                "optimization.optimizer_options={betas:[0.9,0.95]}", "optimization.weight_decay=0.1",
                "optimization.decay_fraction=0.25", "compile_model=true", "logging.log_interval=1000",
            ),
            epoch_share=0.3,
            figure="loss",
            reference="final",
        )
    },
    "vit": {"vit": _vit(width=64, blocks=2, budgets=[((25,), 12)])},
    # Pilots, with --seeds 100 and the next ones: those from 200 on are for claims.
    "vit_ablation": {"vit, ablation": _vit_ablation()},
    "vit_deep": {"vit, 4 blocks": _vit(width=64, blocks=4, budgets=[((10, 20, 40, 80), 1)])},
    "vit_narrow": {"vit, 4 blocks of width 32": _vit(width=32, blocks=4, budgets=[((20, 40, 80), 1)])},
}  # fmt: skip
