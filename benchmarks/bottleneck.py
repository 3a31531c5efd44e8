"""Planted bottlenecks: do scores find the missing capacity, are sound networks left alone, does growing repair them?

A small ResNet is harmed at a known site and trained for half of its steps. Then all sites are scored, and forks finish
the training, through the learning rate's decay: without growth, with one module at each site, and with other amounts of
growth at the harmed site. Controls have no harmful plant: the right answer is not to grow.

    python benchmarks/bottleneck.py --data FOLDER --out FOLDER --jobs 2 --seeds 3
    python benchmarks/bottleneck.py --data FOLDER --out FOLDER --seeds 1 --no-variants --plants clean "squeeze 3"
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.bottleneck_report import report
from benchmarks.places import image_folder, new_folder
from benchmarks.plants import PLANTS, UNITS, Plant, planted_host
from benchmarks.trainings import hardware
from esper.configs import DatasetConfig, OptimizationConfig, TaskConfig
from esper.contracts.recipe import Graft
from esper.data import DataSplits, ImageSet, Preprocess, TrainLoader, load_splits
from esper.kasmina import MorphableModel, surgery, wrap
from esper.kasmina.scores import health, score_sites
from esper.tasks import build_task
from esper.tolaria import optim
from esper.tolaria.budget import Budget
from esper.tolaria.evaluate import evaluate
from esper.tolaria.schedule import learning_rate
from esper.tolaria.step import TrainStep

EPOCHS, NUM_TRAIN, NUM_CONTROLLER = 12, 10_000, 2_000
_RECIPE = OptimizationConfig(max_epochs=EPOCHS, warmup_epochs=1, decay_fraction=0.5)
_WARMUP_STEPS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Growth at a site: `num_kernels` modules of a blueprint; `rate` multiplies their learning rate."""

    site: str
    blueprint_id: str = "basic_block"
    gain: float = 0.5
    num_kernels: int = 1
    rate: float = 1.0


class Trunk:
    """The data of a job, and training on it."""

    def __init__(self, data: str, cache: Path, rng_seed: int) -> None:
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", rng_seed % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
        config, splits = _load(data, cache)
        splits = splits.to(self.device)
        self.prepare = Preprocess(
            mean=splits.mean,
            std=splits.std,
            normalize=True,
            channels_last=self.device.type == "cuda",
            device=self.device,
        )
        chosen = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(rng_seed))[:NUM_TRAIN]
        self.loader = TrainLoader(splits.train[chosen.to(self.device)], config, rng_seed=rng_seed, prepare=self.prepare)
        self.controller = splits.controller[
            torch.arange(min(NUM_CONTROLLER, len(splits.controller)), device=self.device)
        ]
        self.outcome = splits.judge
        self.task = build_task(TaskConfig(), splits.spec, self.device)
        self.total_steps = EPOCHS * self.loader.num_batches
        self.budget = Budget(
            total=self.total_steps,
            by_compute=False,
            steps_per_epoch=self.loader.num_batches,
            batch_size=self.loader.batch_size,
            warmup_steps=self.loader.num_batches,
            warmup=self.loader.num_batches,
        )

    def batches(self, images: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over images, without augmentation."""
        return self.prepare.batches(images, 512)

    def train(self, model: MorphableModel, optimizer: Optimizer, first: int, last: int) -> None:
        """Train steps `first` to `last - 1`."""
        step = TrainStep(
            model=model.train(),
            task=self.task,
            optimizer=optimizer,
            loader=self.loader,
            device=self.device,
            autocast_dtype=None,
            clip_norm=None,
            is_captured=True,
        )
        for number in range(first, last):
            epoch, index = divmod(number, self.loader.num_batches)
            rate = learning_rate(_RECIPE, number, budget=self.budget, spent=number)
            optim.set_learning_rates(optimizer, rate, step=number)
            step.forward_backward_update(epoch=epoch, index=index, step=number)

    def measure(self, model: MorphableModel) -> dict[str, float]:
        """Loss and accuracy on images used for neither training nor scoring."""
        loss, metrics = evaluate(model, self.batches(self.outcome), self.task)
        return {"loss": loss, "accuracy": metrics["accuracy"]}

    def fork(self, model: MorphableModel, optimizer: Optimizer, first: int, growth: Growth | None) -> dict[str, Any]:
        """Finish a copy of a training, after growing at step `first`; the original does not change."""
        kinds = ["width"] if growth is not None and growth.site.endswith(":width") else ["beside"]
        grown = _wrapped(copy.deepcopy(model.host), kinds)
        forked = optim.build_optimizer(_RECIPE, grown)
        optim.load_state_tensors(forked, {name: t.clone() for name, t in optim.state_tensors(optimizer).items()})
        before = sum(p.numel() for p in grown.parameters())
        for number in range(growth.num_kernels if growth is not None else 0):
            assert growth is not None
            _grow(grown, forked, growth, number + 1, born_step=first, images=self.loader.batch(0, 0)[0][:16])
        self.train(grown, forked, first, self.total_steps)
        return self.measure(grown) | {"added_parameters": sum(p.numel() for p in grown.parameters()) - before}


def _load(data: str, cache: Path) -> tuple[DatasetConfig, DataSplits]:
    config = DatasetConfig(name="imagefolder", data_dir=data, image_size=16, val_split=0.4, crop_padding=2)
    return config, load_splits(config, rng_seed=0, cache_dir=cache)


def _wrapped(host: torch.nn.Module, kinds: list[str]) -> MorphableModel:
    layers = ["layer1", "layer2", "layer3"]
    return wrap(host, layers, input_shape=(3, 16, 16), site_kinds=kinds, max_kernels_per_seed=4)


def _grow(
    model: MorphableModel, optimizer: Optimizer, growth: Growth, number: int, *, born_step: int, images: Tensor
) -> None:
    graft = Graft(
        graft_id=number,
        site=growth.site,
        blueprint_id=growth.blueprint_id,
        init_seed=number,
        init_gain=growth.gain,
        born_step=born_step,
    )
    change = surgery.germinate(model, graft, images=images, epoch=0)
    optim.add_parameters(optimizer, _RECIPE, change.added, born_step=born_step, warmup_steps=_WARMUP_STEPS)
    for group in optimizer.param_groups:
        if group["born_step"] == born_step:
            group["lr_factor"] = growth.rate
    slot = model.slot(growth.site)
    surgery.begin_blending(slot, step=0, epoch=0)
    surgery.set_alpha(slot, step=0, blending_steps=0)
    surgery.hold(slot, epoch=0)
    surgery.fossilize(slot, epoch=0)


def variants(plant: Plant) -> dict[str, Growth]:
    """Other amounts of growth at the harmed site; on a control, at a middle site, for comparison."""
    site = plant.harmed[0] if plant.harmed else f"{UNITS[2]}:beside"
    found = {
        "gain 1": Growth(site=site, gain=1.0),
        "three modules": Growth(site=site, num_kernels=3),
        "rate 3x": Growth(site=site, rate=3.0),
        "early": Growth(site=site),
        "early, three modules, gain 1": Growth(site=site, num_kernels=3, gain=1.0),
    }
    if plant.kind == "width":
        found["widen"] = Growth(site=site.replace(":beside", ":width"), blueprint_id="widen")
    return found


def run_job(plant: Plant, rng_seed: int, data: str, cache: Path, *, tries_variants: bool) -> dict[str, Any]:
    """Train a harmed network for half of its steps, score its sites, and finish the forks."""
    torch.set_num_threads(1)
    started = time.monotonic()
    trunk = Trunk(data, cache, rng_seed)
    host = planted_host(plant, rng_seed=rng_seed).to(trunk.device)
    if trunk.device.type == "cuda":
        host = host.to(memory_format=torch.channels_last)
    model = _wrapped(host, ["beside"])
    optimizer = optim.build_optimizer(_RECIPE, model)
    quarter, half = trunk.total_steps // 4, trunk.total_steps // 2
    trunk.train(model, optimizer, 0, quarter)
    planned = variants(plant) if tries_variants else {}
    outcomes = {
        name: trunk.fork(model, optimizer, quarter, growth)
        for name, growth in planned.items()
        if name.startswith("early")
    }
    trunk.train(model, optimizer, quarter, half)
    scores = score_sites(model, trunk.batches(trunk.controller))
    health_of = health([(slot.site, scores[slot.site.name]) for slot in model.all_slots()])
    forks = {site: trunk.fork(model, optimizer, half, Growth(site=site)) for site in scores}
    outcomes |= {
        name: trunk.fork(model, optimizer, half, growth)
        for name, growth in planned.items()
        if not name.startswith("early")
    }
    return {
        "plant": plant.name,
        "kind": plant.kind,
        "harmed": plant.harmed,
        "rng_seed": rng_seed,
        "scores": {site: asdict(score) | {"health": health_of[site]} for site, score in scores.items()},
        "no growth": trunk.fork(model, optimizer, half, None),
        "forks": forks,
        "variants": outcomes,
        "device": hardware()["device"],
        "seconds": time.monotonic() - started,
    }


def main() -> None:
    """Run all missing jobs, print the report, write `bottleneck.jsonl` and `bottleneck.md`."""
    options = _arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    journal = options.out / "bottleneck.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    done = {(row["plant"], row["rng_seed"]) for row in rows}
    names = options.plants or [plant.name for plant in PLANTS]
    jobs = [(plant, seed) for seed in range(options.seeds) for plant in PLANTS if plant.name in names]
    waiting = [job for job in jobs if (job[0].name, job[1]) not in done]
    _load(options.data, options.out / "cache")  # decode once, not in every job
    started, running = time.monotonic(), set()
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        while waiting or running:
            while waiting and len(running) < options.jobs and time.monotonic() - started < options.budget_seconds:
                plant, seed = waiting.pop(0)
                running.add(
                    pool.submit(
                        run_job,
                        plant,
                        seed,
                        options.data,
                        options.out / "cache",
                        tries_variants=not options.no_variants,
                    )
                )
            if not running:
                break
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                if (error := future.exception()) is not None:
                    print(f"a job failed: {error!r}", flush=True)
                    continue
                row = future.result()
                rows.append(row)
                with journal.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{row['plant']}, seed {row['rng_seed']}: {row['seconds']:.0f} s", flush=True)
    text = report(rows)
    print(text)
    (options.out / "bottleneck.md").write_text(text + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=image_folder, required=True, help="DATA/train/CLASS/*, DATA/test/CLASS/*")
    parser.add_argument(
        "--out", type=new_folder, required=True, help="folder for the results; its jobs are not repeated"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each plant")
    parser.add_argument("--jobs", type=int, default=2, help="parallel jobs")
    parser.add_argument("--budget-seconds", type=float, default=float("inf"), help="start no job after this time")
    parser.add_argument("--no-variants", action="store_true", help="only one module at each site")
    names = [plant.name for plant in PLANTS]
    parser.add_argument(
        "--plants", nargs="+", choices=names, metavar="PLANT", help=f"only these of: {', '.join(names)}"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
