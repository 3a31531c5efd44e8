"""What `plan.py` plans: networks, data and budgets, chosen before the first was trained; none was used to design plans.

Networks of these sizes were in no study. Nobody has seen where their curves cross: `guess` is what their relatives say.
No budget is below 32 epochs: growing begins at the end of an epoch, so that pilots of less have no room for it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CELLS", "SHARE", "Cell", "Family"]

SHARE = 0.3
"""At which the fixed choice "always grow" grows."""

Overrides = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A host, what it grows into, and data.

    Attributes:
        name: of the folder of its runs too.
        overrides: of `esper-train`; DATA stands for the folder of the datasets.
        guess: epochs of the final network at which host and final size are thought to be equally good.
        epoch_s: estimated GPU seconds of an epoch of the final network, on an H200 that several processes share: from
            1.0 ms a step of widths 8-16-32, 1.5 of 16-32-64 (twelve share it) and 7.2 of a GPT of width 256 (four do).
    """

    name: str
    overrides: Overrides
    guess: float
    epoch_s: float


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A family with a budget.

    Attributes:
        family: the family.
        factor: budget as a multiple of the family's guess.
    """

    family: Family
    factor: float

    @property
    def name(self) -> str:
        """What --cells selects it by, and rows are known by."""
        return f"{self.family.name}-x{self.factor:g}"

    @property
    def epochs(self) -> float:
        """The budget in epochs of the final network."""
        return self.factor * self.family.guess

    def gpu_s(self, *, pilot_share: float, num_seeds: int) -> float:
        """Estimated GPU seconds of the pilots, the four fixed choices, and the recommended one with what is left."""
        return (pilot_share + num_seeds * (5 - pilot_share)) * self.epochs * self.family.epoch_s


def _images(folder: str) -> Overrides:
    return ("dataset=imagefolder", f"dataset.data_dir=DATA/{folder}", "dataset.image_size=32", "dataset.batch_size=128")


_RESNET = (
    "model=resnet_small", "model.depths=[2,2,2]", "morphogenetic=stack", "optimization.warmup_epochs=0.3",
    "optimization=sgd", "optimization.learning_rate=0.1", "optimization.decay_fraction=0.3",
)  # fmt: skip
_TRANSFORMER = (
    "morphogenetic=stack", "morphogenetic.copy_init=trained", "morphogenetic.newborn_warmup_steps=50",
    "optimization=adamw", "optimization.decay_fraction=0.25", "optimization.warmup_epochs=0.3",
)  # fmt: skip
_VIT = (*_TRANSFORMER, "model=vit", "model.depth=4", "optimization.learning_rate=1e-3")
_GPT = (
    *_TRANSFORMER, "model=gpt", "model.width=192", "model.heads=3", "model.depth=4", "optimization.learning_rate=2e-3",
)  # fmt: skip
_PACKAGES = ("dataset=text", "dataset.data_dir=DATA/python-packages", "dataset.split_by=given", "dataset.context=256")

_FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="resnet-cifar10",
            overrides=(*_RESNET, "model.widths=[20,40,80]", *_images("cifar10")),
            guess=32,
            epoch_s=0.54,
        ),
        Family(
            name="resnet-cifar100",
            overrides=(*_RESNET, "model.widths=[32,64,128]", *_images("cifar100")),
            guess=100,
            epoch_s=1.3,
        ),
        Family(name="vit-cifar10", overrides=(*_VIT, *_images("cifar10")), guess=100, epoch_s=0.63),
        Family(name="vit-cifar100", overrides=(*_VIT, *_images("cifar100")), guess=100, epoch_s=0.63),
        Family(
            name="gpt-packages", overrides=(*_GPT, *_PACKAGES, "dataset.epoch_windows=8192"), guess=36, epoch_s=0.38
        ),
        Family(
            name="gpt-library",
            overrides=(*_GPT, "dataset=python_source", "dataset.epoch_windows=4096"),
            guess=48,
            epoch_s=0.19,
        ),
    )
}

CELLS = tuple(
    Cell(family=_FAMILIES[name], factor=factor)
    for name, factors in {
        "resnet-cifar10": (1.0, 3.0),
        "resnet-cifar100": (0.33, 1.0),
        "vit-cifar10": (0.33, 1.0),
        "vit-cifar100": (1.0, 2.0),
        "gpt-packages": (1.0, 4.0),
        "gpt-library": (0.7, 3.0),
    }.items()
    for factor in factors
)
"""Twelve cells, from 0.33 to 4 times the guess."""
