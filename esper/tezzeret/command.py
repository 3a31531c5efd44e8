"""`esper urza characterise|submit`: measure blueprints on this machine, or submit them to forges on the bus."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
from collections.abc import Sequence

from esper.configs import RedisConfig, StorageConfig
from esper.contracts.messages import BlueprintSubmitted, TopicName
from esper.errors import ConfigError
from esper.oona.codec import message
from esper.oona.redis import RedisBus
from esper.tezzeret.characterise import SITES, Forge, Limits, characterise, jobs
from esper.urza import Shape
from esper.urza.command import open_if_exists, open_library
from esper.urza.records import KernelRecord
from esper.urza.store import find_blueprint

__all__ = ["characterise_blueprints", "submit"]

_SITE = re.compile(r"{0}(:{0})?".format(r"\d{1,9}(x\d{1,9}){0,2}"), re.ASCII)


def characterise_blueprints(
    names: Sequence[str],
    *,
    url: str | None,
    sites: Sequence[str],
    device: str,
    batch_size: int,
    compile: bool,
    again: bool,
    limits: Limits,
    storage: StorageConfig,
) -> int:
    """Characterise blueprints and print the results; returns the exit code, 1 if a kernel is not ready.

    Args:
        sites: shapes as `_site` parses them; `SITES` if empty.

    Raises:
        ConfigError: a site is not valid, or a blueprint fits none.
        EsperError: a blueprint does not exist, or the library, the device or the worker cannot be used.
    """
    shapes = [_site(text) for text in sites] or SITES
    with (
        open_library(url, create=True) as store,
        contextlib.closing(Forge(device=device, limits=limits, storage=storage)) as forge,
    ):
        blueprints = [find_blueprint(name, store) for name in names]
        pending = [
            job for blueprint in blueprints for job in jobs(blueprint, shapes, batch_size=batch_size, compile=compile)
        ]
        is_ready = True
        for kernel in characterise(pending, forge=forge, store=store, again=again):
            sys.stdout.write(f"{_line(kernel)}\n")
            sys.stdout.flush()
            is_ready &= kernel.status == "ready"
    return 0 if is_ready else 1


def submit(names: Sequence[str], *, url: str | None, redis: RedisConfig) -> int:
    """Submit blueprints to the forges on the bus; returns the exit code.

    Raises:
        EsperError: a blueprint does not exist, or the bus cannot be reached.
    """
    with open_if_exists(url) as store:
        blueprints = [find_blueprint(name, store) for name in names]
    sender = socket.gethostname()
    with contextlib.closing(RedisBus(redis)) as bus:
        for blueprint in blueprints:
            name = blueprint.blueprint_id
            submission = BlueprintSubmitted(blueprint_id=name, submitted_by=sender, definition=blueprint.definition)
            bus.publish([message(TopicName.BLUEPRINT_SUBMITTED, submission, sender=sender, trace=name)])
            sys.stdout.write(f"{name}: submitted; results: esper urza show {name.partition('@')[0]}\n")
    return 0


def _site(text: str) -> tuple[Shape, Shape]:
    """Parse `64x32x32`, `65x192` or `192`; or input and output, `64x32x32:128x16x16`."""
    shapes = [tuple(map(int, shape.split("x"))) for shape in text.split(":")] if _SITE.fullmatch(text) else []
    sizes = [size for shape in shapes for size in shape]
    if not sizes or len(shapes[0]) != len(shapes[-1]) or min(sizes) < 1 or max(sizes) > 2**16:
        raise ConfigError(
            f"--site {text}: give CHANNELSxHEIGHTxWIDTH, TOKENSxFEATURES or FEATURES, or INPUT:OUTPUT, e.g. "
            "64x32x32:128x16x16"
        )
    return shapes[0], shapes[-1]


def _line(kernel: KernelRecord) -> str:
    shapes = " to ".join("x".join(map(str, shape)) for shape in (kernel.in_shape, kernel.out_shape))
    head = f"{kernel.blueprint_id}  {shapes}  batch {kernel.batch_size}  {kernel.status}"
    if kernel.status != "ready":
        return f"{head}: {kernel.reason}"
    passes = f"{_milliseconds(kernel.forward_s)} + {_milliseconds(kernel.backward_s)} ms"
    compiled = (
        f"  compiled {_milliseconds(kernel.compiled_forward_s)} + {_milliseconds(kernel.compiled_backward_s)} ms"
        f" (after {kernel.compile_s:.1f} s)"
        if kernel.compile_s is not None
        else ""
    )
    memory = f"{(kernel.memory_bytes or 0) / 2**20:.1f} MiB"
    note = f"  {kernel.reason}" if kernel.reason else ""
    return f"{head}  {passes}  {memory}  {kernel.num_parameters:,} parameters  {kernel.num_macs:,} MACs{compiled}{note}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.2f}"
