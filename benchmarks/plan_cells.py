"""What `plan.py` plans: networks, data and budgets, chosen before the first was trained; none was used to design plans.

Networks of these sizes were in no study. Nobody has seen where their curves cross: `guess` is what their relatives say.
ResNets of widths 16-32-64 and two to four blocks cross at 26.5 epochs of 40,500 images, those of 8-16-32 well before 40
(at 40, the final size is ahead as that of 16-32-64 is at 80), so about in proportion to the width; a GPT of width 256
crosses at 85 MB, and the compute of a crossing is taken to grow with the square of the parameters.

Pilots that grow need an epoch as host, as growth begins at the end of one, so no budget is below 48 epochs: with less,
15 % do not pay for a size in between. That is why epochs are short here: the splits for training have 18,000 images
of CIFAR-10 (split for validation: 13,500), 15,000 of Fashion-MNIST (7,500), and 0.3 to 0.5 MB of text.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CELLS", "SHARE", "WORKERS_PER_GPU", "Cell", "Family"]

SHARE = 0.3
"""At which the fixed choice "always grow" grows."""
WORKERS_PER_GPU = 12
_START_S, _NUM_PILOTS = 10.0, 10
"""Seconds in which a run starts, tests and ends, while others train on its GPU; runs of a plan."""

Overrides = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A host, what it grows into, and data.

    Attributes:
        name: of the folder of its runs too.
        overrides: of `esper-train`; DATA stands for the folder of the datasets.
        guess: epochs of the final network at which host and final size are thought to be equally good.
        epoch_s: estimated GPU seconds of an epoch of the final network with its validation, on an H200 that twelve
            processes share. A step took 1.0 ms of widths 8-16-32 and 1.4 of 16-32-64 at 32 pixels; transformers of
            this size are not measured: 1 to 1.2 ms is what their kernels are thought to take, 1.9 at width 192.
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
        training = (pilot_share + num_seeds * (5 - pilot_share)) * self.epochs * self.family.epoch_s
        return training + (_NUM_PILOTS + 5 * num_seeds) * _START_S / WORKERS_PER_GPU


def _images(folder: str, pixels: int, val_split: float) -> Overrides:
    return (
        "dataset=imagefolder", f"dataset.data_dir=DATA/{folder}", f"dataset.image_size={pixels}",
        f"dataset.val_split={val_split}", "dataset.batch_size=128",
    )  # fmt: skip


_CIFAR10, _FASHION = _images("cifar10-jpeg", 32, 0.6), _images("fashion-mnist", 28, 0.5)
_RESNET = (
    "model=resnet_small", "model.depths=[2,2,2]", "morphogenetic=stack", "optimization.warmup_epochs=0.3",
    "optimization=sgd", "optimization.learning_rate=0.1", "optimization.decay_fraction=0.3",
)  # fmt: skip
_TRANSFORMER = (
    "morphogenetic=stack", "morphogenetic.copy_init=trained", "morphogenetic.newborn_warmup_steps=50",
    "optimization=adamw", "optimization.learning_rate=1e-3", "optimization.decay_fraction=0.25",
    "optimization.warmup_epochs=0.3", "model.depth=4",
)  # fmt: skip
_VIT, _GPT = (*_TRANSFORMER, "model=vit"), (*_TRANSFORMER, "model=gpt", "dataset.context=256", "dataset.batch_size=32")


_PACKAGES = (
    "dataset=text", "dataset.data_dir=DATA/python-packages", "dataset.val_split=0.005", "dataset.test_split=0.03",
)  # fmt: skip
_LIBRARY = ("dataset=python_source", "dataset.val_split=0.05")


_FAMILIES = {
    family.name: family
    for family in (
        # 19 epochs of 40,500 images; with half of them, some more epochs and fewer steps.
        Family(
            name="resnet-cifar10", overrides=(*_RESNET, "model.widths=[12,24,48]", *_CIFAR10), guess=24, epoch_s=0.21
        ),
        # On CIFAR-10 34 epochs of 40,500 images, which are 92 of 15,000.
        Family(
            name="resnet-fashion", overrides=(*_RESNET, "model.widths=[20,40,80]", *_FASHION), guess=64, epoch_s=0.19
        ),
        # Of ViTs nothing is known but that they learn more slowly than ResNets.
        Family(name="vit-cifar10", overrides=(*_VIT, "model.width=96", *_CIFAR10), guess=60, epoch_s=0.2),
        Family(
            name="vit-fashion", overrides=(*_VIT, "model.width=80", "model.heads=5", *_FASHION), guess=40, epoch_s=0.14
        ),
        # 25 MB, a quarter of the parameters of width 256, but for a batch of a quarter; epochs of 0.5 MB.
        Family(
            name="gpt-packages",
            overrides=(*_GPT, "model.width=128", "model.heads=2", *_PACKAGES, "dataset.epoch_windows=2048"),
            guess=48,
            epoch_s=0.09,
        ),
        # 50 MB, four times through the standard library; epochs of 0.3 MB.
        Family(
            name="gpt-library",
            overrides=(*_GPT, "model.width=192", "model.heads=3", *_LIBRARY, "dataset.epoch_windows=1216"),
            guess=160,
            epoch_s=0.085,
        ),
    )
}

CELLS = tuple(
    Cell(family=_FAMILIES[name], factor=factor)
    for name, factors in {
        "resnet-cifar10": (4.0, 2.0),
        "resnet-fashion": (1.5, 0.75),
        "vit-cifar10": (1.6, 0.8),
        "vit-fashion": (3.0, 1.2),
        "gpt-packages": (4.0, 1.0),
        "gpt-library": (1.0, 0.3),
    }.items()
    for factor in factors
)
"""Twelve cells, from 0.3 to 4 times the guess."""
