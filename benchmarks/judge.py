"""Does the judge's verdict predict a module's final gain? Verdicts against forks trained through the LR decay.

Forks resume a checkpoint at 40 % of a training: one without growth, one for each module at each site. Two epochs after
germination the judge measures the module's gain (loss without it minus loss with it). At the end, after the decay, the
fork with the module is compared with the fork without growth, on the same held-out images.

    python benchmarks/judge.py --data FOLDER --out FOLDER --seeds 3 --jobs 2
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.trainings import EXPERIMENT, arguments, hardware
from esper.configs import (
    CheckpointConfig,
    DatasetConfig,
    LoggingConfig,
    ModelConfig,
    MorphogeneticConfig,
    OptimizationConfig,
    TolariaConfig,
    TrackingConfig,
)
from esper.contracts.decisions import AdaptationDecision
from esper.tamiyo import judge
from esper.tolaria import TolariaTrainer
from esper.tolaria.evaluate import measure
from esper.tolaria.growth.judging import paired_losses

BLUEPRINTS = ("basic_block", "conv1x1", "squeeze_excite")
FORKED_AT, HOLDING_EPOCHS = 0.4, 2
_SIGNIFICANCE = 0.05
"""Error probability of one verdict; in a run each verdict gets a smaller one."""


def main() -> None:
    """Run all forks, print the table, write `judge.json`."""
    options = arguments(__doc__.splitlines()[0]).parse_args()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
        tasks = [pool.submit(_forks, seed, options.data, options.epochs, options.out) for seed in range(options.seeds)]
        rows = [row for task in tasks for row in task.result()]
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"hardware": hardware(), "epochs": options.epochs, "seeds": options.seeds, "forks": rows}
    (options.out / "judge.json").write_text(json.dumps(record, indent=1))
    print(summary(rows))


def summary(rows: list[dict[str, Any]]) -> str:
    """Markdown: judged and final gain relative to the loss, and how many kept modules help in the end by threshold."""
    lines = ["| blueprint | forks | judged gain | final gain |", "|---|---|---|---|"]
    for blueprint in BLUEPRINTS:
        mine = [row for row in rows if row["blueprint_id"] == blueprint]
        if mine:
            judged, final = (statistics.mean(row[key] for row in mine) for key in ("judged", "final"))
            lines.append(f"| {blueprint} | {len(mine)} | {100 * judged:.1f} % | {100 * final:.1f} % |")
    rank = spearmanr([row["judged"] for row in rows], [row["final"] for row in rows]).statistic
    lines += ["", f"Rank correlation of judged and final gain over {len(rows)} forks: {rank:.2f}.", ""]
    lines += ["| improvement_threshold | kept | of these helped in the end | mean final gain: kept, culled |"]
    lines += ["|---|---|---|---|"]
    for threshold in (0.0, 0.005, 0.01, 0.02, 0.05, 0.1):
        kept = [row["final"] for row in rows if row["judged_bound"] > threshold]
        culled = [row["final"] for row in rows if row["judged_bound"] <= threshold]
        means = ", ".join(f"{100 * statistics.mean(group):.1f} %" if group else "–" for group in (kept, culled))
        lines.append(f"| {threshold} | {len(kept)} of {len(rows)} | {sum(gain > 0 for gain in kept)} | {means} |")
    return "\n".join(lines)


def _forks(seed: int, data: str, epochs: int, out: Path) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    folder = out / EXPERIMENT  # its parent holds the cache of decoded images
    checkpoint = asyncio.run(_train_to_fork(_config(seed, data, epochs), folder / f"judge-{seed}-trunk"))
    plain, _ = asyncio.run(_finish(_config(seed, data, epochs, checkpoint), folder / f"judge-{seed}-plain", None))
    sites = asyncio.run(_sites(_config(seed, data, epochs), folder / f"judge-{seed}-sites"))
    rows = []
    for site in sites:
        for blueprint in BLUEPRINTS:
            if blueprint == "squeeze_excite" and site.endswith("beside"):
                continue
            decision = AdaptationDecision(should_adapt=True, site=site, blueprint_id=blueprint)
            run_dir = folder / f"judge-{seed}-{site.replace(':', '-')}-{blueprint}"
            with_kernel, pair = asyncio.run(_finish(_config(seed, data, epochs, checkpoint), run_dir, decision))
            assert pair is not None
            verdict = judge(*pair, improvement_threshold=0.0, significance=_SIGNIFICANCE)
            rows.append(
                {
                    "seed": seed,
                    "site": site,
                    "blueprint_id": blueprint,
                    "judged": verdict.gain / verdict.loss_off,
                    "judged_bound": verdict.lower_bound / verdict.loss_off,
                    "final": float((plain - with_kernel).mean() / plain.mean()),
                }
            )
            print(rows[-1], flush=True)
    return rows


def _config(seed: int, data: str, epochs: int, checkpoint: str | None = None) -> TolariaConfig:
    return TolariaConfig(
        model=ModelConfig(
            name="resnet_small", widths=[8, 16, 32], depths=[1, 1, 1], target_layers=["layer1", "layer2", "layer3"]
        ),
        dataset=DatasetConfig(name="imagefolder", data_dir=data),
        optimization=OptimizationConfig(max_epochs=epochs),
        morphogenetic=MorphogeneticConfig(policy="never", adaptation_frequency=1000, holding_epochs=1000),
        logging=LoggingConfig(log_interval=1000),
        checkpoint=CheckpointConfig(save_best=False, save_interval=10**6, auto_resume=False, resume_from=checkpoint),
        tracking=TrackingConfig(name="none"),
        experiment_name=EXPERIMENT,
        rng_seed=seed,
    )


async def _train_to_fork(config: TolariaConfig, run_dir: Path) -> str:
    trainer = TolariaTrainer(config, run_dir=run_dir)
    try:
        await trainer.initialize()
        while trainer.training_state.epoch < round(FORKED_AT * config.optimization.max_epochs):
            await trainer.train_epoch()
            await trainer.handle_end_of_epoch()
        return trainer.save_checkpoint(trainer.training_state.epoch)
    finally:
        await trainer.shutdown()


async def _sites(config: TolariaConfig, run_dir: Path) -> list[str]:
    trainer = TolariaTrainer(config, run_dir=run_dir)
    try:
        await trainer.initialize()
        return [slot.site.name for slot in trainer.run.model.all_slots()]
    finally:
        await trainer.shutdown()


async def _finish(
    config: TolariaConfig, run_dir: Path, decision: AdaptationDecision | None
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Train a fork to the end; returns its final losses on the judge split, and those off and on when judged."""
    trainer = TolariaTrainer(config, run_dir=run_dir)
    try:
        await trainer.initialize()
        born, pair = trainer.training_state.epoch, None
        if decision is not None:
            assert await trainer.handle_adaptation_signal(decision)
        while True:
            await trainer.train_epoch()
            epoch = trainer.training_state.epoch
            if epoch == config.optimization.max_epochs:
                break
            if decision is not None and epoch == born + HOLDING_EPOCHS:
                pair = _judged(trainer, str(decision.site))
            await trainer.handle_end_of_epoch()
        data = trainer.run.life.data
        losses, _ = measure(trainer.run.model, data.judge(), trainer.run.parts.task)
        return torch.cat(losses).cpu(), pair
    finally:
        await trainer.shutdown()


def _judged(trainer: TolariaTrainer, site: str) -> tuple[Tensor, Tensor]:
    model, data = trainer.run.model, trainer.run.life.data
    task = trainer.run.parts.task
    return paired_losses(model, model.slot(site), task=task, judge_batches=data.judge, norm_images=data.norm_images)


if __name__ == "__main__":
    main()
