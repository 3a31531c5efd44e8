"""From observations to a plan: which option is expected to end best within the budget, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esper.errors import RunError
from esper.planning.forecast import MAX_EXTRAPOLATION, Forecast, forecast, interval, mirror
from esper.planning.learned import USUAL_SHARE, advise, simplest, worth_of
from esper.planning.observations import Band, Choice, Interval, Observation, Option, Plan, Question
from esper.planning.words import choice_label, choice_words, difference_words, percent_words
from esper.simic.growth import GrowthPolicy

__all__ = ["judge"]

Floats = NDArray[np.float64]

_SURE = 0.75
"""Probability of being ahead of the best option of another kind, from which a choice matters."""
_BAND_POINTS = 40
_BAND_BEYOND = 4.0
"""Plots reach from the smallest observed budget to this many times the budget."""


def judge(
    question: Question,
    observations: Sequence[Observation],
    *,
    policy: GrowthPolicy | None = None,
    num_draws: int = 400,
    rng_seed: int = 0,
) -> Plan:
    """Predict every option at the budget, and recommend one; the same observations give the same plan.

    Recommended is the simplest option (the host before larger sizes, these before growing) whose regret is least, give
    or take a quarter of what is worth a choice. The choice matters if it is expected ahead of the best option of any
    other kind (a size, or growing) by what is worth a choice, and is so with a probability of at least 75 %. An active
    policy decides whether to grow, instead; the rest of the plan stays the same.

    Raises:
        RunError: there are too few observations, or the pilots have spent the budget.
    """
    found = forecast(question, observations, num_draws=num_draws, rng_seed=rng_seed)
    candidates = [_candidate(choice, question, found) for choice in _choices(question, found)]
    shortfalls = np.stack([one.shortfalls for one in candidates])
    regrets = shortfalls - shortfalls.min(axis=0)
    wins = _wins([one.choice for one in candidates], regrets)
    options = [
        _option(one, found, p_best=float(p), regret=float(regret))
        for one, p, regret in zip(candidates, wins.mean(axis=1), regrets.mean(axis=1), strict=True)
    ]
    worth = worth_of(question.headline, float(np.median(shortfalls)))
    recommended = planned = simplest(options, worth)
    learned = ""
    if policy is not None and policy.is_active:
        recommended, learned = advise(policy, question, options, planned)
    is_overruled = recommended is not planned
    matters, reason = _verdict(recommended, candidates, shortfalls, worth=worth, question=question)
    why = _why(recommended, options, regrets, worth=worth, question=question, is_overruled=is_overruled)
    return Plan(
        question=question,
        options=tuple(sorted(options, key=lambda option: (option is not recommended, option.regret))),
        recommended=recommended.choice,
        matters=matters and not is_overruled,
        reason=learned if is_overruled else reason,
        why=why if is_overruled or not learned else f"{why} {learned}",
        bands=tuple(_bands(question, found, recommended, observations)),
        crossing=_crossing(found, observations, recommended.macs),
        warnings=tuple(_warnings(question, observations, found, recommended)),
        without_policy=planned.choice if is_overruled else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A choice at its budget; shortfalls (k,), see `Forecast`."""

    choice: Choice
    macs: float
    shortfalls: Floats


def _choices(question: Question, found: Forecast) -> list[Choice]:
    """All choices, the simplest first: of two that are as good, the first is recommended."""
    sizes = [Choice(size=size.name) for size in found.sizes]
    final = found.sizes[-1].name
    shares = sorted(question.shares, key=lambda share: abs(np.log(share / USUAL_SHARE)))
    grown = [Choice(size=final, share=share) for share in shares] if len(sizes) > 1 else []
    return [*sizes, *grown]


def _candidate(choice: Choice, question: Question, found: Forecast) -> _Candidate:
    macs = _available(choice, question, found)
    return _Candidate(choice=choice, macs=macs, shortfalls=found.shortfalls(choice, np.array([macs]))[:, 0])


def _available(choice: Choice, question: Question, found: Forecast) -> float:
    """MACs of the run: what the pilots have left, and those of the trunk that it goes on from."""
    if question.macs is not None:
        macs = question.macs - question.pilot_macs
    else:
        assert question.seconds is not None, "a question limits MACs or seconds"
        pace = found.seconds(choice, 1.0)
        if pace is None:
            raise RunError("--hours: no run of some size was timed; give --compute or --epochs instead")
        macs = (question.seconds - question.pilot_seconds) / pace
    if macs <= 0:
        raise RunError("esper plan: the pilots have spent the budget; give more, or train a smaller share of pilots")
    size, before = (choice.size, 1 - question.decay) if choice.share is None else (question.host.name, choice.share)
    usable = (trunk for trunk in question.trunks.get(size, ()) if trunk < before * (macs + trunk))
    return macs + max(usable, default=0.0)


def _option(one: _Candidate, found: Forecast, *, p_best: float, regret: float) -> Option:
    return Option(
        choice=one.choice,
        macs=one.macs,
        epochs=found.epochs(one.choice, one.macs),
        seconds=found.seconds(one.choice, one.macs),
        loss=found.loss_of(one.choice, one.macs),
        figure=found.figure_of(one.choice, one.macs),
        p_best=p_best,
        regret=regret,
        extrapolation=found.extrapolation(one.choice, one.macs),
        worth=None if one.choice.share is None else interval(found.worth(one.choice, one.macs)),
    )


# --- the verdict ------------------------------------------------------------------------------------------------------


def _wins(choices: Sequence[Choice], regrets: Floats) -> Floats:
    """Which option is the best (n, k), by draw; kinds that are equally good, such as without any error, share it."""
    is_best, kinds = regrets == 0, np.array([_kind(choice) for choice in choices])
    num_alike = np.stack([is_best[kinds == kind].sum(axis=0) for kind in kinds])
    shares = is_best / np.maximum(num_alike, 1)
    return np.asarray(shares / shares.sum(axis=0))


def _kind(choice: Choice) -> str:
    return choice.size if choice.share is None else "grown"


def _verdict(
    recommended: Option, candidates: Sequence[_Candidate], shortfalls: Floats, *, worth: float, question: Question
) -> tuple[bool, str]:
    """Whether the choice matters, and why, in a sentence."""
    index = [one.choice for one in candidates].index(recommended.choice)
    others = [i for i, one in enumerate(candidates) if _kind(one.choice) != _kind(recommended.choice)]
    if not others:
        return False, "There is one option only."
    rival = min(others, key=lambda i: shortfalls[i].mean())
    ahead = shortfalls[rival] - shortfalls[index]
    gap, sure = float(ahead.mean()), float((ahead > 0).mean() + 0.5 * (ahead == 0).mean())
    mine, other = (choice_words(one, question) for one in (recommended.choice, candidates[rival].choice))
    amount = difference_words(abs(gap), question.headline)
    if gap >= worth and sure >= _SURE:
        word = f"{mine} is expected to end {amount} ahead of the next best, {other}"
        return True, f"{word[0].upper()}{word[1:]} (probability {percent_words(sure)})."
    side = "ahead of" if gap >= 0 else "behind"
    open_words = "The pilots leave open which is better," if gap >= worth else "No difference worth the choice between"
    return False, (
        f"{open_words} {mine} {'or' if gap >= worth else 'and'} {other}: the first is on average {amount} {side} the "
        f"second, and better with a probability of {percent_words(sure)}."
    )


def _why(
    recommended: Option,
    options: Sequence[Option],
    regrets: Floats,
    *,
    worth: float,
    question: Question,
    is_overruled: bool,
) -> str:
    """Why an option is recommended, what it loses if another kind is the best, and which others are as good.

    The kind with the least expected regret need not be the one that is the best most often.

    Args:
        recommended: one of the options.
        options: (n,) of them.
        regrets: (n, k), one column a draw.
        worth: a difference that is worth a choice.
        question: what was asked.
        is_overruled: whether a learned policy recommends it, not the regrets.
    """

    def amount(value: float) -> str:
        return difference_words(value, question.headline)

    def if_wrong(option: Option) -> float:
        weights = wins[kinds != _kind(option.choice)].sum(axis=0)
        return float(np.average(regrets[options.index(option)], weights=weights))

    wins = _wins([option.choice for option in options], regrets)
    kinds = np.array([_kind(option.choice) for option in options])
    chances = {one.choice: float(wins[kinds == _kind(one.choice)].sum(axis=0).mean()) for one in options}
    least, mine = min(option.regret for option in options), chances[recommended.choice]
    because = "it has the least regret: it" if recommended.regret <= least else "none has clearly less regret: it"
    if is_overruled:
        because = "the learned policy says so; by the pilots' curves, it"
    text = f"Recommended because {because} is expected to lose {amount(recommended.regret)} against the best option"
    if mine < 1:
        lost = amount(if_wrong(recommended))
        text += f", or {lost} if another kind is the best (probability {percent_words(1 - mine)})"
    favourite = max(options, key=lambda option: (chances[option.choice], -option.regret))
    if chances[favourite.choice] > mine:
        name = choice_label(favourite.choice, question) if favourite.choice.share is None else "growing"
        text += f"; {name} is the best more often ({percent_words(chances[favourite.choice])})"
        if chances[favourite.choice] < 1:
            text += f", but loses {amount(if_wrong(favourite))} where it is not"
    alike = [option for option in options if option is not recommended and option.regret - recommended.regret < worth]
    if alike:
        labels = ", ".join(choice_label(option.choice, question) for option in alike)
        text += f". Within {amount(worth)} of it, which is not worth a choice: {labels}"
    return f"{text}."


def _warnings(
    question: Question, observations: Sequence[Observation], found: Forecast, recommended: Option
) -> Iterator[str]:
    for size in question.sizes:
        if size not in found.sizes:
            yield f"{size.label}: no training has finished, so it is not judged."
    if recommended.extrapolation > MAX_EXTRAPOLATION:
        yield (
            f"The recommended run is {recommended.extrapolation:.3g} times as long as what was observed of its size; "
            f"beyond {MAX_EXTRAPOLATION:.0f} times, intervals rest on the assumed shape of the curves."
        )
    shortest = min(one.macs for one in observations if not one.host_macs and one.size == found.sizes[-1].name)
    if shortest < found.sizes[-1].macs_per_epoch:
        yield (
            "Some pilots end within the first epoch, where curves often bend: intervals may be far too narrow; give a "
            "larger --pilot-share."
        )
    if not any(one.host_macs > 0 for one in observations) and len(found.sizes) > 1:
        yield "No pilot grew: how much growing carries over is assumed, not measured."
    for size in found.sizes:
        points = sorted((one.macs, one.loss) for one in observations if one.size == size.name and not one.host_macs)
        lowest = min(loss for _, loss in points)
        if points[-1][1] > lowest + 2 * float(np.median(found.loss.noise)):
            yield f"{size.label}: the loss rises with longer training, it overfits; its curve assumes a plateau."


# --- the plot ---------------------------------------------------------------------------------------------------------


def _grid(observations: Sequence[Observation], macs: float) -> Floats:
    low = min(macs, *(one.macs for one in observations if one.host_macs == 0))
    return np.geomspace(low, _BAND_BEYOND * macs, _BAND_POINTS)


def _bands(
    question: Question, found: Forecast, recommended: Option, observations: Sequence[Observation]
) -> Iterator[Band]:
    macs, at = _grid(observations, recommended.macs), np.array([recommended.macs])
    choices = _choices(question, found)
    grown = [choice for choice in choices if choice.share is not None]
    best = min(grown, key=lambda one: found.shortfalls(one, at).mean(), default=None)
    for choice in choices:
        if choice.share is not None and choice != best:
            continue
        edges = np.quantile(mirror(found.shortfalls(choice, macs), found.headline), [0.1, 0.5, 0.9], axis=0)
        low, median, high = (tuple(map(float, edge)) for edge in edges)
        yield Band(choice=choice, macs=tuple(map(float, macs)), low=low, median=median, high=high)


def _crossing(found: Forecast, observations: Sequence[Observation], macs: float) -> Interval | None:
    """Where the curves of host and final size cross, as far as the bands reach."""
    grid = _grid(observations, macs)
    host, final = (found.shortfalls(Choice(size=size.name), grid) for size in (found.sizes[0], found.sizes[-1]))
    ahead = final < host
    first = np.where(ahead.any(axis=1), grid[ahead.argmax(axis=1)], np.inf)
    is_seen = grid[0] < np.median(first) < np.inf  # else one of the two is ahead all along
    return interval(np.minimum(first, grid[-1])) if is_seen else None
