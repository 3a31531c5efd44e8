"""What a plan is made from, and what it says: finished trainings and a budget, then the options and how good they are.

MACs are those of training, forward and backward passes (`costs.training_macs`); losses are validation losses in nats of
trainings whose learning rate has decayed to its end; figures are values of the task's first metric, a fraction if its
unit is %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from esper.contracts.metrics import MetricInfo

__all__ = ["Band", "Choice", "Interval", "Observation", "Option", "Plan", "Prediction", "Question", "Size"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A network that may be trained.

    Attributes:
        name: `host`, `between`, `final`, or another that is unique among the sizes.
        label: what it is, for readers, such as "host" or "a size in between".
        macs_per_epoch: MACs of training it for one epoch.
        num_parameters: its parameters.
    """

    name: str
    label: str
    macs_per_epoch: float
    num_parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to train: a size from scratch, or the host, which grows to that size after a share of the compute.

    Attributes:
        size: name of the network that it ends with.
        share: of all compute that is spent as host before it grows, in (0, 1); None: from scratch.
    """

    size: str
    share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A finished training.

    Attributes:
        size: name of the network that it ended with.
        seed: its `rng_seed`; trainings of one size and seed share a trunk, and their errors.
        macs: all MACs that led to this network, those of the trunk that it branched from included.
        host_macs: those of them that were spent as host, before it grew; 0: from scratch.
        loss: validation loss.
        figure: the task's first metric on the validation split.
        seconds: time that all of `macs` took, or would take in one run; None: unknown.
        run: name of the run.
        is_pilot: whether it was trained for this plan.
    """

    size: str
    seed: int
    macs: float
    host_macs: float = 0.0
    loss: float
    figure: float
    seconds: float | None = None
    run: str = ""
    is_pilot: bool = True

    @property
    def choice(self) -> Choice:
        """What it trained."""
        return Choice(size=self.size, share=self.host_macs / self.macs or None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a plan is asked.

    Attributes:
        sizes: by cost; the first is the host, the last the final network.
        headline: the task's first metric.
        macs: compute that may be spent, pilots included; None: `seconds` limits it.
        seconds: time that may be spent, pilots included; None: `macs` limits it.
        shares: at which growing is considered.
        pilot_macs: MACs that the pilots have spent. Those of a trunk with several branches count once.
        pilot_seconds: time that they have spent.
        trunks: MACs of the trunks of each size, by name, one of which an option may continue.
        decay: share of a training in which the learning rate decays; a trunk ends before it.
        num_examples: of the validation split, from which the chance in a percentage follows; None: unknown.
    """

    sizes: tuple[Size, ...]
    headline: MetricInfo
    macs: float | None = None
    seconds: float | None = None
    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    pilot_macs: float = 0.0
    pilot_seconds: float = 0.0
    trunks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    decay: float = 0.0
    num_examples: int | None = None

    @property
    def host(self) -> Size:
        """The smallest size."""
        return self.sizes[0]

    @property
    def final(self) -> Size:
        """The largest size."""
        return self.sizes[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A median and an 80 % interval."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a run is expected to show, on average, and the ends of its 80 % interval, seed noise included."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A choice and what is expected of it.

    Attributes:
        choice: what to train.
        macs: MACs that lead to it, what it takes over from a pilot's trunk included: the budget of the run.
        epochs: passes over the data.
        seconds: expected time of `macs`; None: unknown.
        loss: validation loss.
        figure: the task's first metric on the validation split; two expected values differ as much as their regrets.
        p_best: probability that it is the best of all, seed noise left out.
        regret: by how much the figure is expected to be worse than that of the best option, at least 0.
        extrapolation: how many times as long as the longest observed training of its size it is.
        worth: of growing: how many epochs of the final size an epoch as host is worth (the transfer rho).
    """

    choice: Choice
    macs: float
    epochs: float
    seconds: float | None
    loss: Prediction
    figure: Prediction
    p_best: float
    regret: float
    extrapolation: float
    worth: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The expected figure of a choice at several budgets, seed noise left out, with 80 % intervals; all (n,).

    Attributes:
        choice: what is trained.
        macs: the budgets.
        low, median, high: of the figure, by value.
    """

    choice: Choice
    macs: tuple[float, ...]
    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer.

    Attributes:
        question: what was asked.
        options: the most promising first.
        recommended: what to train.
        matters: whether the choice makes a difference that is worth it.
        reason: what is expected of it against the best option of another kind.
        why: why it is recommended, what is lost if that is wrong, and which options are as good.
        without_policy: what a learned policy has overruled; None: nothing.
        bands: what is expected of some choices at other budgets, for the plot.
        crossing: MACs from which the final size is better than the host; None: outside of the bands, as an end may be.
        warnings: what weakens it, such as an extrapolation.
    """

    question: Question
    options: tuple[Option, ...]
    recommended: Choice
    matters: bool
    reason: str
    bands: tuple[Band, ...] = ()
    crossing: Interval | None = None
    warnings: tuple[str, ...] = ()
    why: str = ""
    without_policy: Choice | None = None

    @property
    def chosen(self) -> Option:
        """The recommended option."""
        return next(option for option in self.options if option.choice == self.recommended)
