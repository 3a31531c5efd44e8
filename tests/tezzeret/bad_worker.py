"""The forge's worker, with blueprints in the catalogue that crash, hang, hoard memory, or hold a dead weight."""

from __future__ import annotations

import os
import sys
import time
from types import MappingProxyType

import torch
from torch import nn

from esper.tezzeret import worker
from esper.urza import Blueprint, Kernel, Shape, catalogue

_hoard: list[bytearray] = []


def crash(_: Shape, __: Shape) -> Kernel:
    sys.stderr.write("about to end\n")
    sys.stderr.flush()
    os._exit(3)


def kill(_: Shape, __: Shape) -> Kernel:
    os.abort()


def hang(_: Shape, __: Shape) -> Kernel:
    while True:
        time.sleep(60)


def hoard(_: Shape, __: Shape) -> Kernel:
    while True:
        _hoard.append(bytearray(b"x" * 2**24))


def idle(in_shape: Shape, out_shape: Shape) -> Kernel:
    kernel = catalogue.CATALOGUE["conv1x1"].build(in_shape, out_shape)
    kernel.unused = nn.Parameter(torch.ones(1))
    return kernel


BAD = {
    build.__name__: Blueprint(
        blueprint_id=build.__name__,
        category="residual",
        complexity=1,
        kinds=frozenset({"after"}),
        build=build,
        summary="",
        source="",
    )
    for build in (crash, kill, hang, hoard, idle)
}
catalogue.CATALOGUE = MappingProxyType({**catalogue.CATALOGUE, **BAD})  # type: ignore[misc]

if __name__ == "__main__":
    worker.main(sys.argv[1], int(sys.argv[2]))
