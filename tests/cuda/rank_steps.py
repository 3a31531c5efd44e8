"""The ranks of `test_ranks_gradients.py`: `python -m tests.cuda.rank_steps FOLDER DEVICE` prints a line of JSON.

For each case and each way to train it: the sum of losses and the checksums of all weights after 24 steps, with a growth
and a cull in between, and how many buckets the step had, and how many had started when the backward pass ended.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.stepping import LateBuckets, opened, own_stream, train_steps
from esper.contracts.decisions import Action, AdaptationDecision
from esper.tolaria.buckets import GradientBuckets
from esper.tolaria.ranks import Ranks, init_ranks
from esper.tolaria.run import Run
from tests.conftest import tiny_config

GROW = AdaptationDecision(should_adapt=True, site="layer1.0:after", blueprint_id="basic_block")
CULL = dataclasses.replace(GROW, action=Action.CULL)
CASES: dict[str, dict[str, Any]] = {
    "float32, clipped": {"mixed_precision": False, "optimization__gradient_clip_norm": 0.5},
    "bfloat16": {},
    "float16": {"autocast_dtype": "float16"},
    "parts": {"optimization__accumulate": 2},
    "adamw, average": {"optimization__optimizer": "adamw", "optimization__ema_decay": 0.9},
    "synchronised batch norm": {"ranks__sync_batch_norm": True},
}
WAYS = ("eager", "captured", "captured, sums at the end")


class Counted(GradientBuckets):
    """Counts what has started when the backward pass has ended."""

    num_early = 0

    def reduce(self) -> None:
        self.num_early = len(self._waits)
        super().reduce()


class CountedLate(Counted, LateBuckets):
    """The same for sums that start then."""


def main(folder: Path, device: str) -> None:
    ranks = init_ranks()
    ranks.device(device)
    own_stream()
    found: dict[str, dict[str, Any]] = {}
    for case, settings in CASES.items():
        config = tiny_config(device=device, morphogenetic__policy="never", **settings)
        found[case] = {}
        for way in WAYS:
            with opened(config, folder / f"{case}-{way}", ranks=ranks) as run:
                found[case][way] = trained(run, way, ranks)
    ranks.barrier()
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def trained(run: Run, way: str, ranks: Ranks) -> dict[str, Any]:
    kind = CountedLate if way == "captured, sums at the end" else Counted
    buckets = run.step.gradients = kind(run.model, ranks)
    buckets.bucket_bytes, buckets.outer_bytes = 2000, 500
    if way == "eager":
        run.step._graph = None
    run.synchronize_ranks()
    train_steps(run, 8)
    early = [buckets.num_early]
    for decision in (GROW, CULL):
        assert run.growth.apply(decision)
        train_steps(run, 8)
        early.append(buckets.num_early)
    return {
        "loss": float(run.step.sums.epoch[0]),
        "weights": run.model.fingerprint(),
        "early": early,
        "buckets": len(buckets._buckets),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    os._exit(0)  # closing may wait for a rank that has failed
