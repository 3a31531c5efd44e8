"""Check the settings of growth against each other, and against those of training."""

from __future__ import annotations

from pathlib import Path

from esper.configs.comparison import ARMS
from esper.configs.implied import latest_growth
from esper.configs.tolaria import TolariaConfig
from esper.errors import ConfigError

__all__ = ["check_growth"]


def check_growth(config: TolariaConfig) -> None:
    """Refuse settings of growth that contradict each other.

    Raises:
        ConfigError: the first problem.
    """
    growth = config.morphogenetic
    _check_unused_files(config)
    if growth.policy == "never":
        return
    if growth.policy == "replay":
        _check_recipe(config)
        return
    if growth.policy == "planned":
        _check_plan(growth.plan_path)
        return
    if not growth.blueprint_categories:
        raise ConfigError("morphogenetic.blueprint_categories=[]: nothing may grow; name one, or use policy=never")
    _check_copies(config)
    _check_growth_period(config)
    if growth.incubation != "none" and config.autocast_dtype == "float16":
        raise ConfigError(
            f"morphogenetic.incubation={growth.incubation}: its gradients underflow in autocast_dtype=float16; use "
            "bfloat16, or incubation=none"
        )
    if growth.alpha_search and growth.incubation == "none":
        raise ConfigError(
            "morphogenetic.alpha_search=true: needs a module that was trained before it joins; set "
            "morphogenetic.incubation=fit or shadow"
        )
    _check_policy(config)


def _check_unused_files(config: TolariaConfig) -> None:
    growth = config.morphogenetic
    for key, policy in (("tamiyo_policy_path", "learned"), ("recipe_path", "replay")):
        path = getattr(growth, key)
        if path is not None and growth.policy != policy and config.comparison.arm is None:
            raise ConfigError(
                f"morphogenetic.{key}={path}: read with morphogenetic.policy={policy} only, not with {growth.policy}; "
                "set that policy, or leave the file out"
            )
    if growth.plan_path is not None and growth.policy != "planned" and growth.plan_reason is None:
        raise ConfigError(
            f"morphogenetic.plan_path={growth.plan_path}: read with morphogenetic=planned only, not with policy="
            f"{growth.policy}; leave it out"
        )


def _check_plan(path: str | None) -> None:
    if path is None or not Path(path).is_file():
        raise ConfigError(
            f"morphogenetic.plan_path={path}: policy=planned needs a plan; make one with esper plan, and give the "
            "plan.json that it wrote"
        )


def _check_copies(config: TolariaConfig) -> None:
    growth = config.morphogenetic
    categories = growth.blueprint_categories
    if growth.policy == "stack" and categories != ["copy"]:
        raise ConfigError(
            f"morphogenetic.blueprint_categories={categories}: policy=stack grows copies; set it to [copy]"
        )
    if "copy" not in categories:
        return
    if len(categories) > 1:
        raise ConfigError(f"morphogenetic.blueprint_categories={categories}: copy stands alone, or is left out")
    if growth.policy == "learned":
        raise ConfigError(
            "morphogenetic.policy=learned: was fitted to new modules, not to copies; add morphogenetic=heuristic, or "
            "use policy=stack"
        )
    for key, names in (("blueprint", [growth.blueprint or "copy"]), ("library", growth.library)):
        if names not in ([], ["copy"]):
            raise ConfigError(
                f"morphogenetic.{key}: {names[0]} is a new module, but blueprint_categories=[copy] grows copies; add "
                "morphogenetic=heuristic or another preset of new modules, or leave it out"
            )
    if growth.incubation != "none":
        raise ConfigError(
            f"morphogenetic.incubation={growth.incubation}: copies are trained already; leave it out, or add "
            "morphogenetic=heuristic, which grows new modules"
        )
    if growth.policy == "stack":
        _check_doublings(config)
    if growth.copy_init == "shared" and (growth.judged or growth.blending_steps):
        culled = "judged=true" if growth.judged else f"blending_steps={growth.blending_steps}"
        raise ConfigError(
            f"morphogenetic.{culled}: copy_init=shared weakens the blocks that are copied, so that copies join at once "
            "and stay; set judged=false and blending_steps=0, or copy_init=trained"
        )
    if "after" not in config.model.site_kinds:
        raise ConfigError(
            f"model.site_kinds={config.model.site_kinds}: copies stand after blocks; add after, or use "
            "morphogenetic=heuristic or another preset of new modules"
        )
    if growth.copy_order != "stack" and growth.policy != "stack" and config.comparison.arm is None:
        raise ConfigError(
            f"morphogenetic.copy_order={growth.copy_order}: policy={growth.policy} grows at one site a time, which "
            "would deepen a block, not a stage; use copy_order=stack, or policy=stack"
        )


def _check_doublings(config: TolariaConfig) -> None:
    """Refuse settings under which a doubling would not happen."""
    growth, kernels = config.morphogenetic, config.model.max_kernels_per_seed
    early = [at for at in growth.schedule_at if at < growth.growth_from]
    if early:
        raise ConfigError(
            f"morphogenetic.schedule_at={growth.schedule_at}: policy=stack needs shares at or after "
            f"morphogenetic.growth_from={growth.growth_from:g}"
        )
    if len(growth.schedule_at) > kernels:
        raise ConfigError(
            f"model.max_kernels_per_seed={kernels}: {len(growth.schedule_at)} doublings (morphogenetic.schedule_at) "
            "need as many"
        )
    if len(growth.schedule_at) > 1 and growth.adaptation_cooldown:
        raise ConfigError(
            f"morphogenetic.adaptation_cooldown={growth.adaptation_cooldown}: may keep stages from doubling again; set "
            "it to 0"
        )


def _check_growth_period(config: TolariaConfig) -> None:
    growth, recipe = config.morphogenetic, config.optimization
    if recipe.max_macs is not None and growth.schedule_by != "compute":
        raise ConfigError(
            f"optimization.max_macs={recipe.max_macs:g}: how many steps it buys depends on growth; set "
            "morphogenetic.schedule_by=compute"
        )
    gets_budget = config.comparison.arm is not None and ARMS[config.comparison.arm].after  # at launch
    if growth.schedule_by == "compute" and recipe.max_macs is None and not gets_budget:
        limits = [name for name in ("max_added_macs", "max_added_parameters") if getattr(growth, name) is not None]
        unknown = f"morphogenetic.{limits[0]}" if limits else f"morphogenetic.policy={growth.policy}"
        if limits or growth.policy != "stack":
            is_preset = growth.grows_copies and growth.policy in ("heuristic", "random", "schedule")
            otherwise = f"; new modules instead of copies: morphogenetic={growth.policy}" if is_preset else ""
            raise ConfigError(
                f"morphogenetic.schedule_by=compute: with {unknown} the final network, and so the compute of "
                f"max_epochs, is not known beforehand; set optimization.max_macs{otherwise}"
            )
    latest = latest_growth(recipe)
    if growth.growth_until > latest + 1e-9:
        raise ConfigError(
            f"morphogenetic.growth_until={growth.growth_until:g}: allowed is at most {latest:g} with "
            f"optimization.scheduler={recipe.scheduler}: new modules need the high learning rate"
        )
    if growth.growth_from >= growth.growth_until:
        raise ConfigError(
            f"morphogenetic.growth_from={growth.growth_from:g}: allowed is below morphogenetic.growth_until="
            f"{growth.growth_until:g}"
        )
    if growth.plateau_epochs is not None and not growth.growth_from:
        raise ConfigError(
            f"morphogenetic.plateau_epochs={growth.plateau_epochs}: lets growth begin before "
            "morphogenetic.growth_from, which is 0; set that, or leave plateau_epochs null"
        )


def _check_policy(config: TolariaConfig) -> None:
    growth = config.morphogenetic
    # The control arms of a comparison share the grown arm's settings, even those that their policies do not use.
    if growth.fork_steps and growth.policy != "heuristic" and config.comparison.arm is None:
        raise ConfigError(
            f"morphogenetic.fork_steps={growth.fork_steps}: policy={growth.policy} never compares two sites; use "
            "policy=heuristic, or 0"
        )
    if growth.follows_schedule:
        late = [at for at in growth.schedule_at if at > growth.growth_until]
        if late or not growth.schedule_at:
            raise ConfigError(
                f"morphogenetic.schedule_at={growth.schedule_at}: needs at least one time, all at most "
                f"morphogenetic.growth_until={growth.growth_until:g}"
            )
    if growth.tamiyo == "shared" and config.bus != "redis":
        raise ConfigError(f"morphogenetic.tamiyo=shared: needs the message bus, but bus={config.bus}; set bus=redis")
    path = growth.tamiyo_policy_path
    if growth.tamiyo == "local" and growth.policy == "learned" and not (path and Path(path).is_file()):
        raise ConfigError(
            f"morphogenetic.tamiyo_policy_path={path}: policy=learned needs a policy file; make one with: "
            "esper simic RUN_DIR... --out policy.safetensors"
        )


def _check_recipe(config: TolariaConfig) -> None:
    path = config.morphogenetic.recipe_path
    if config.comparison.arm is not None:  # it is that of the grown run, set at launch
        return
    if path is None or not ((Path(path) / "recipe.json").is_file() or Path(path).is_file()):
        raise ConfigError(
            f"morphogenetic.recipe_path={path}: policy=replay needs a recipe; give a recipe.json, or the folder of a "
            "finished run that holds one"
        )
