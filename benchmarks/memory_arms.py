"""The measurements of `memory.py`; each runs in its own process."""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from benchmarks.stepping import configuration, opened, own_stream, train_steps, wait
from esper.build import parts
from esper.configs import MorphogeneticConfig, TolariaConfig
from esper.contracts.decisions import Action, AdaptationDecision
from esper.tolaria.evaluate import evaluate
from esper.tolaria.run import Run

__all__ = ["ARMS", "MIB", "PLAIN", "census", "cycles", "peaks", "slope"]

MIB = 2**20
PLAIN = "plain loop"
ARMS = (PLAIN, "off", "default", "off, not captured")
_BLUEPRINTS = ("basic_block", "bottleneck", "residual_block")
_STEPS_IN_A_CYCLE = 5  # eager steps, capture, replay

Phases = dict[str, dict[str, int]]


def peaks(options: argparse.Namespace, folder: Path) -> Phases:
    """Peak memory of each phase of an arm in bytes: `allocated`, `reserved`, and the part of the latter in `graphs`."""
    own_stream()
    arm = options.arm
    grows = MorphogeneticConfig(enable_tamiyo=arm == "default", policy="never" if arm == "default" else "heuristic")
    config = _configuration(options, model=options.model, morphogenetic=grows)
    if arm == PLAIN:
        return _plain_peaks(config, folder, num_steps=options.steps)
    rss = _rss()
    with opened(config, folder / "benchmark" / "run") as run:
        if arm == "off, not captured":
            run.step._graph = None
        validation = run.parts.evaluation_batches(run.parts.splits.controller)
        phase = functools.partial(_phase, device=run.parts.device, rss=rss)
        found = {
            "training": phase(lambda: train_steps(run, options.steps)),
            "validation": phase(lambda: evaluate(run.model, validation, run.parts.task)),
        }
        if arm == "default":
            run.state.epoch = 1
            found["scoring"] = phase(lambda: run.growth.end_of_epoch(is_last=False))
            assert not run.model.recipe, "a module has grown: the seeds are not dormant"
        return found


def _plain_peaks(config: TolariaConfig, folder: Path, *, num_steps: int) -> Phases:
    """A hand-written loop, with the data on the device."""
    rss = _rss()
    built = parts(config, cache_dir=folder)
    network, device = built.model.host.train(), built.device
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    on_cuda, optimization = device.type == "cuda", config.optimization
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=optimization.learning_rate,
        momentum=optimization.momentum,
        nesterov=optimization.nesterov,
        weight_decay=optimization.weight_decay,
        fused=on_cuda,
    )

    def train() -> None:
        for step in range(num_steps):
            images, labels = built.loader.batch(*divmod(step, built.loader.num_batches))
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=on_cuda):
                loss = F.cross_entropy(network(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        optimizer.zero_grad(set_to_none=True)

    validation = built.evaluation_batches(built.splits.controller)
    phase = functools.partial(_phase, device=device, rss=rss)
    return {"training": phase(train), "validation": phase(lambda: evaluate(network, validation, built.task))}


def cycles(options: argparse.Namespace, folder: Path) -> list[dict[str, int]]:
    """Repeatedly grow, train, cull and train; returns a census after each cycle."""
    own_stream()
    grows = MorphogeneticConfig(policy="never", adaptation_cooldown=0)
    config = _configuration(options, model=options.cycled_model, morphogenetic=grows)
    found = []
    with opened(config, folder / "benchmark" / "run") as run:
        sites = itertools.cycle([slot.site.name for slot in run.model.all_slots() if slot.site.kind == "after"])
        blueprints = itertools.cycle(_BLUEPRINTS)
        for _ in range(options.cycles):
            train_steps(run, _STEPS_IN_A_CYCLE)
            site = next(sites)
            grow = AdaptationDecision(should_adapt=True, site=site, blueprint_id=next(blueprints))
            for decision in (grow, AdaptationDecision(should_adapt=True, site=site, action=Action.CULL)):
                if not run.growth.apply(decision):
                    raise RuntimeError(f"{decision.action} at {site} was refused: see the journal")
                train_steps(run, _STEPS_IN_A_CYCLE)
            run.growth.advance_seeds(is_last=False)  # ends the embargo
            found.append(census(run))
    return found


def census(run: Run) -> dict[str, int]:
    """Counts of live objects, and bytes of memory, of this process and device."""
    wait(run)
    gc.collect()
    # By type: `isinstance` makes proxies such as MLflow's or Hydra's import. Fake tensors of compilers have no memory.
    alive = [(type(obj), obj) for obj in gc.get_objects() if type(obj) is not FakeTensor]
    on_cuda = run.parts.device.type == "cuda"
    tensors = [one for kind, one in alive if issubclass(kind, Tensor) and one.layout is torch.strided]
    storages = {one.untyped_storage().data_ptr(): one for one in tensors}
    modules = [one for kind, one in alive if issubclass(kind, nn.Module)]
    return {
        "allocated_bytes": torch.cuda.memory_allocated() if on_cuda else 0,
        "reserved_bytes": torch.cuda.memory_reserved() if on_cuda else 0,
        "graph_bytes": _graph_bytes() if on_cuda else 0,
        "tensor_bytes": sum(one.untyped_storage().nbytes() for one in storages.values()),
        "rss_bytes": psutil.Process().memory_info().rss,
        "tensors": sum(issubclass(kind, Tensor) for kind, _ in alive),
        "parameters": sum(issubclass(kind, nn.Parameter) for kind, _ in alive),
        "modules": len(modules),
        "hooks": sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in modules),
        "graphs": sum(issubclass(kind, torch.cuda.CUDAGraph) for kind, _ in alive) if on_cuda else 0,
        "optimizer_entries": len(run.optimizer.state) + sum(len(one["params"]) for one in run.optimizer.param_groups),
        "esper_objects": sum(str(kind.__module__).startswith("esper.") for kind, _ in alive),
    }


def slope(values: list[int]) -> float:
    """Least-squares slope per value."""
    if len(values) < 2:
        return 0.0
    return round(float(np.polyfit(range(len(values)), values, 1)[0]), 3) + 0.0  # no -0.0


def _configuration(options: argparse.Namespace, *, model: str, morphogenetic: MorphogeneticConfig) -> TolariaConfig:
    return configuration(
        model=model,
        batch_size=options.batch_size,
        num_examples=options.images,
        image_size=32,
        device=options.device,
        morphogenetic=morphogenetic,
    )


def _phase(work: Callable[[], object], *, device: torch.device, rss: int) -> dict[str, int]:
    if device.type != "cuda":
        work()
        return {"allocated": _rss() - rss, "reserved": _rss() - rss, "graphs": 0}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "graphs": _graph_bytes(),
    }


def _graph_bytes() -> int:
    """Memory reserved by private pools of captured graphs."""
    segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    return sum(one["total_size"] for one in segments if tuple(one["segment_pool_id"]) != (0, 0))


def _rss() -> int:
    """Peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
