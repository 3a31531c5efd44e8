"""The forge's worker, in which blueprints of some names crash, hang, hoard memory, or hold a dead weight."""

from __future__ import annotations

import os
import sys
import time
from types import MappingProxyType
from typing import Any, Never

import torch
from torch import nn

from esper.tezzeret import worker
from esper.tezzeret.measure import Job
from esper.urza import Blueprint, Kernel, Shape, catalogue

_hoard: list[bytearray] = []


def crash() -> Never:
    sys.stderr.write("about to end\n")
    sys.stderr.flush()
    os._exit(3)


def kill() -> Never:
    os.abort()


def hang() -> Never:
    while True:
        time.sleep(60)


def hoard() -> Never:
    while len(_hoard) < 2**7:  # 2 GiB, although nobody looked meanwhile: more might end others
        _hoard.append(bytearray(b"x" * 2**24))
    hang()


def idle(in_shape: Shape, out_shape: Shape) -> Kernel:
    kernel = catalogue.get("conv1x1").build(in_shape, out_shape)
    kernel.unused = nn.Parameter(torch.ones(1))
    return kernel


def misbehave(job: Job, **options: Any) -> dict[str, Any]:
    options["begin"]("building")
    bad = {"crash": crash, "kill": kill, "hang": hang, "hoard": hoard}.get(job.blueprint_id.partition("@")[0])
    if bad is not None:
        bad()
    return _measure(job, **options)


if __name__ == "__main__":
    blueprint = Blueprint(
        blueprint_id="idle",
        category="residual",
        complexity=1,
        kinds=frozenset({"after"}),
        build=idle,
        summary="",
        source="",
    )
    catalogue.CATALOGUE = MappingProxyType({**catalogue.CATALOGUE, "idle": blueprint})  # type: ignore[misc]
    _measure, worker.measure = worker.measure, misbehave
    worker.main(sys.argv[1], int(sys.argv[2]))
