"""Whether, when and how the network grows."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["BLUEPRINT_CATEGORIES", "INCUBATIONS", "POLICIES", "MorphogeneticConfig", "PolicyInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInfo:
    """What is known about a policy of Tamiyo before it is built.

    Attributes:
        module: where it is built: `build(config, rng_seed)` in this module.
        summary: what it does, for the documents.
        uses_scores: whether it needs the sites' scores.
    """

    module: str
    summary: str
    uses_scores: bool = True


_PACKAGE = "esper.tamiyo.policies"
POLICIES = {
    "never": PolicyInfo(module=f"{_PACKAGE}.never", summary="measures, grows nothing"),
    "schedule": PolicyInfo(
        module=f"{_PACKAGE}.schedule", summary="fixed times, sites in forward order", uses_scores=False
    ),
    "random": PolicyInfo(module=f"{_PACKAGE}.random", summary="random times and sites", uses_scores=False),
    "heuristic": PolicyInfo(module=f"{_PACKAGE}.heuristic", summary="the site that stands out"),
    "learned": PolicyInfo(module=f"{_PACKAGE}.learned", summary="a fitted model, see tamiyo_policy_path"),
    "replay": PolicyInfo(
        module=f"{_PACKAGE}.never", summary="trains a recorded final architecture from scratch, see recipe_path"
    ),
}
INCUBATIONS = ("none", "fit", "shadow")
BLUEPRINT_CATEGORIES = ("residual", "attention", "normalization")


@dataclass(kw_only=True)
class MorphogeneticConfig:
    """Group `morphogenetic`."""

    enable_tamiyo: bool = setting(True, "false: an ordinary training run, without slots")
    policy: str = setting(
        "heuristic",
        "what decides: " + "; ".join(f"{name} ({policy.summary})" for name, policy in POLICIES.items()),
        choices=tuple(POLICIES),
    )
    tamiyo: str = setting(
        "local",
        "who decides: this run itself, or a shared service that is asked over the bus (bus=redis)",
        choices=("local", "shared"),
    )
    tamiyo_deadline_s: float = setting(
        5.0, "tamiyo=shared: seconds to wait for her answer; without one the run goes on unadapted", above=0, high=600
    )
    tamiyo_policy_path: str | None = setting(None, "policy=learned: the policy's file")
    recipe_path: str | None = setting(None, "policy=replay: a recipe.json, or the folder of a finished run")

    adaptation_frequency: int = setting(1, "epochs between consultations of Tamiyo", low=1)
    max_adaptations_per_epoch: int = setting(2, "most decisions carried out in one epoch", low=1)
    adaptation_cooldown: int = setting(3, "epochs before a layer is adapted again", low=0)
    always_score: bool = setting(
        True,
        "score the sites also where the policy does not look at scores (schedule, random); esper simic learns from it",
    )
    growth_from: float = setting(0.0, "share of training before which nothing is grown", low=0, below=1)
    plateau_epochs: int | None = setting(
        None, "grow before growth_from too once the validation loss has not improved for this many epochs", low=1
    )
    growth_until: float = setting(
        0.6,
        "share of training after which nothing new is grown; must end before the learning rate decays",
        above=0,
        high=1,
    )
    schedule_at: list[float] = setting(
        [0.4], "policy=schedule: shares of training at which to grow, one module each", above=0, below=1
    )

    score_per: str = setting(
        "site",
        "what a site's score is divided by before sites are compared: site (nothing), macs or parameters (what the "
        "preferred blueprint would add)",
        choices=("site", "macs", "parameters"),
    )
    health_threshold: float = setting(
        0.3, "a site is a candidate at or below this health: 0.3 means it stands out 3.3-fold", above=0, high=1
    )
    max_added_macs: float | None = setting(
        None, "budget: most multiply-accumulates that growing may add, as a share of the host's", above=0
    )
    max_added_parameters: float | None = setting(
        None, "budget: most parameters that growing may add, as a share of the host's", above=0
    )
    fork_steps: int = setting(
        0, "steps of a short fork, its rate decaying to 0, that settles between the two best sites; 0: no forks", low=0
    )

    improvement_threshold: float = setting(
        0.01, "relative drop of the judge loss that the lower confidence bound must exceed to keep a module", low=0
    )
    judged: bool = setting(True, "false: keep every module that is added in full, to see what the judge is worth")
    cost_rent: float = setting(
        0.0, "relative drop of the judge loss asked for on top, per doubling of the host's multiply-accumulates", low=0
    )
    judge_confidence: float = setting(
        0.95, "confidence of the judge over all its verdicts of a run together", above=0.5, below=1
    )

    blueprint_categories: list[str] = setting(
        ["residual", "attention", "normalization"],
        "kinds of module that may grow, the preferred first",
        choices=BLUEPRINT_CATEGORIES,
    )
    max_blueprint_complexity: int = setting(5, "most complex blueprint that may grow", low=1, high=5)
    blueprint: str | None = setting(
        None, "grow only this blueprint, built in or of the library; null: the policy chooses"
    )
    library: list[str] = setting([], "blueprints of the library (esper urza list) that may grow besides those built in")

    insertion: str = setting(
        "gain",
        "how a module enters: gain (its output scale starts at insertion_gain) or identity (at 0: the output does not "
        "change at first)",
        choices=("gain", "identity"),
    )
    insertion_gain: float = setting(1.0, "insertion=gain: output scale at birth", above=0, high=1)
    insertion_gain_rate: float = setting(1.0, "factor on the learning rate of a newborn's output scale", above=0)
    incubation: str = setting(
        "none",
        "training of a module before it joins the host: none, fit (towards the host's gradient, penalised), or shadow "
        "(on the loss of the blended network, the host held still)",
        choices=INCUBATIONS,
    )
    incubation_steps: int = setting(200, "steps of incubation", low=1)
    alpha_search: bool = setting(
        False, "scale a module on entering to the best alpha in [0, 1] on the controller split"
    )
    blending_steps: int = setting(0, "steps over which alpha rises from 0 to 1; 0: at once", low=0)
    newborn_warmup_steps: int = setting(100, "steps of learning-rate warm-up of a newborn module", low=0)
    newborn_weight_decay: bool = setting(True, "decay the weights of newborn modules like the host's")
    holding_epochs: int = setting(2, "epochs at alpha 1 before the judge decides", low=1)
