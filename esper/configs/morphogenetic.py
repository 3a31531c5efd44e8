"""Whether, when and how the network grows."""

from __future__ import annotations

from dataclasses import dataclass

from esper.configs.schema import setting

__all__ = ["BLUEPRINT_CATEGORIES", "POLICIES", "MorphogeneticConfig", "PolicyInfo"]


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
    "never": PolicyInfo(module=f"{_PACKAGE}.never", summary="scores sites, grows nothing"),
    "schedule": PolicyInfo(
        module=f"{_PACKAGE}.schedule", summary="fixed times, sites in forward order", uses_scores=False
    ),
    "stack": PolicyInfo(
        module=f"{_PACKAGE}.stack", summary="copies: every stage doubles its depth at fixed times", uses_scores=False
    ),
    "random": PolicyInfo(module=f"{_PACKAGE}.random", summary="random times and sites", uses_scores=False),
    "heuristic": PolicyInfo(module=f"{_PACKAGE}.heuristic", summary="the site whose score stands out"),
    "learned": PolicyInfo(module=f"{_PACKAGE}.learned", summary="a fitted model, see tamiyo_policy_path"),
    "replay": PolicyInfo(
        module=f"{_PACKAGE}.never", summary="trains a recorded final architecture from scratch, see recipe_path"
    ),
    "planned": PolicyInfo(
        module=f"{_PACKAGE}.never", summary="stack, replay or no growth, as a plan decided, see plan_path"
    ),
}
BLUEPRINT_CATEGORIES = ("residual", "attention", "normalization", "copy")


@dataclass(kw_only=True)
class MorphogeneticConfig:
    """Group `morphogenetic`."""

    enable_tamiyo: bool = setting(True, "false: an ordinary training run, without slots")
    policy: str = setting(
        "heuristic",
        "growth policy: " + "; ".join(f"{name} ({policy.summary})" for name, policy in POLICIES.items()),
        choices=tuple(POLICIES),
        registered="policy",
    )
    tamiyo: str = setting(
        "local",
        "where the policy runs: local (in this run) or shared (a service, reached over the bus; needs bus=redis)",
        choices=("local", "shared"),
    )
    tamiyo_deadline_s: float = setting(
        5.0, "tamiyo=shared: seconds to wait for decisions; without them the run continues unchanged", above=0, high=600
    )
    tamiyo_policy_path: str | None = setting(None, "policy=learned: file of the policy")
    recipe_path: str | None = setting(None, "policy=replay: a recipe.json, or the folder of a finished run")
    policy_digest: str | None = setting(None, "digest of that policy or recipe; set at launch")
    recipe_fraction: float = setting(
        1.0, "policy=replay: fraction of what grew that is built; 0.5: a size in between", above=0, high=1
    )

    plan_path: str | None = setting(None, "policy=planned: the plan.json that esper plan wrote")
    plan_reason: str | None = setting(None, "why the plan decided as it did; set at launch")

    adaptation_frequency: int = setting(1, "epochs between consultations of Tamiyo", low=1)
    max_adaptations_per_epoch: int = setting(2, "maximum decisions carried out in one epoch", low=1)
    adaptation_cooldown: int = setting(3, "epochs before a layer is adapted again", low=0)
    always_score: bool = setting(
        True,
        "score sites even if the policy does not use scores (schedule, random); esper simic learns from them",
    )
    schedule_by: str = setting(
        "steps",
        "what fractions of training are fractions of: steps (of max_epochs) or compute (of max_macs, or of max_epochs "
        "epochs of the final network); the decay of the learning rate too",
        choices=("steps", "compute"),
    )
    growth_from: float = setting(0.0, "fraction of training before which nothing grows", low=0, below=1)
    plateau_epochs: int | None = setting(
        None,
        "grow before growth_from once the validation loss has not improved for this many epochs; null: never",
        low=1,
    )
    growth_until: float = setting(
        0.6,
        "fraction of training after which nothing new grows; must be before the learning rate decays",
        above=0,
        high=1,
    )
    schedule_at: list[float] = setting(
        [0.4],
        "fractions of training at which to grow: one module each (policy=schedule; with copies also random and "
        "heuristic), or every stage (stack)",
        above=0,
        below=1,
    )

    score_examples: int | None = setting(
        None,
        "examples of the controller split, evenly spaced, that sites are scored on; null: all. The standard error of a "
        "score grows as 1/sqrt(examples): half as many, 1.4 times",
        low=32,
    )
    score_per: str = setting(
        "site",
        "divisor of a site's score before sites are compared: site (none), macs or parameters (that the preferred "
        "blueprint would add)",
        choices=("site", "macs", "parameters"),
    )
    health_threshold: float = setting(
        0.3, "maximum health of a candidate site; 0.3: its score is 3.3 times the median of the others", above=0, high=1
    )
    max_added_macs: float | None = setting(
        None, "budget: maximum multiply-accumulates that growth may add, as a fraction of the host's", above=0
    )
    max_added_parameters: float | None = setting(
        None, "budget: maximum parameters that growth may add, as a fraction of the host's", above=0
    )
    fork_steps: int = setting(
        0,
        "steps of a fork of training, with learning rate decaying to 0, that is run for each of the two best sites to "
        "choose between them; 0: no forks",
        low=0,
    )

    improvement_threshold: float = setting(
        0.01, "keep a module if its relative drop of the judge loss exceeds this at its lower confidence bound", low=0
    )
    judged: bool = setting(
        True, "false: keep every module that is fully blended in, to measure what the judge is worth"
    )
    cost_rent: float = setting(
        0.0,
        "additional relative drop of the judge loss that is required, per doubling of the host's multiply-accumulates",
        low=0,
    )
    judge_confidence: float = setting(
        0.95, "simultaneous confidence of all verdicts of the judge in a run", above=0.5, below=1
    )

    blueprint_categories: list[str] = setting(
        ["residual", "attention", "normalization"],
        "categories of blueprints that may grow, in order of preference",
        choices=BLUEPRINT_CATEGORIES,
    )
    max_blueprint_complexity: int = setting(5, "maximum complexity of a blueprint", low=1, high=5)
    blueprint: str | None = setting(
        None, "grow only this blueprint, built in or from the library; null: the policy chooses"
    )
    library: list[str] = setting(
        [], "blueprints of the library (see esper urza list) that may grow besides those built in"
    )

    copy_order: str = setting(
        "stack",
        "policy=stack: stack (copies of the whole chain behind its last block) or interleave (each behind its source)",
        choices=("stack", "interleave"),
    )
    copy_init: str = setting(
        "trained",
        "initial weights of copies: trained; shared (the same, and the gain of a block's last batch norm is divided "
        "among the block and its copies); zeroed (last norm 0: the output does not change); fresh (at random)",
        choices=("trained", "shared", "zeroed", "fresh"),
    )
    copy_optimizer_state: bool = setting(False, "copies begin with the optimizer state of their source, not with zeros")
    insertion: str = setting(
        "gain",
        "how a module joins the host: gain (its output scale starts at insertion_gain) or identity (at 0, so that the "
        "output does not change at first)",
        choices=("gain", "identity"),
    )
    insertion_gain: float = setting(1.0, "insertion=gain: initial output scale", above=0, high=1)
    insertion_gain_rate: float = setting(1.0, "factor on the learning rate of a newborn module's output scale", above=0)
    incubation: str = setting(
        "none",
        "training of a module before it joins the host: none, fit (regress on the negative gradient at its site), or "
        "shadow (on the loss of the blended network, with the host frozen)",
        choices=("none", "fit", "shadow"),
    )
    incubation_steps: int = setting(200, "steps of incubation", low=1)
    alpha_search: bool = setting(
        False, "when a module joins, scale its output by the best factor in [0, 1] on the controller split"
    )
    blending_steps: int = setting(0, "steps in which alpha rises from 0 to 1; 0: at once", low=0)
    newborn_warmup_steps: int = setting(100, "steps of learning-rate warm-up of a newborn module", low=0)
    newborn_weight_decay: bool = setting(True, "apply weight decay to newborn modules as to the host")
    holding_epochs: int = setting(2, "epochs at alpha 1 before the judge decides", low=1)

    @property
    def grows_copies(self) -> bool:
        """Whether what grows are copies of trained blocks."""
        return self.blueprint_categories == ["copy"]

    @property
    def follows_schedule(self) -> bool:
        """Whether the policy grows at `schedule_at` only."""
        return self.policy in ("schedule", "stack") or (self.grows_copies and self.policy in ("random", "heuristic"))
