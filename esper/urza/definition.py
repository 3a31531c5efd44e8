"""Declared blueprints: kernels described in JSON, from a closed set of operations. No code, no pickle.

    {"schema": 1, "name": "wide_depthwise", "category": "residual", "kinds": ["after", "beside"],
     "summary": "7x7 per channel, then two 1x1", "source": "arXiv:2201.03545",
     "layers": [{"op": "depthwise", "size": 7}, {"op": "batch_norm"},
                {"op": "convolution", "size": 1, "width": 2}, {"op": "activation", "function": "gelu"},
                {"op": "convolution", "size": 1, "width": 1}]}

Esper appends a batch norm over the site's output channels, whose gain is the output scale. The first convolution larger
than 1x1 carries the site's stride, else the first one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from esper.configs.morphogenetic import BLUEPRINT_CATEGORIES
from esper.costs import count
from esper.errors import ConfigError
from esper.urza.kernel import Blueprint, Kernel, Shape, stride_between
from esper.urza.operations import OPERATIONS, MisfitError, Operation, Piece, Sum, build_chain, choices
from esper.urza.residual import ConvolutionBranch

__all__ = ["MAX_BYTES", "Definition", "parse"]

SCHEMA = 1
MAX_BYTES = 64 * 1024
"""Most bytes of a definition, checked before it is parsed."""
MAX_OPERATIONS = 24
MAX_BRANCHES = 4
MAX_DEPTH = 3
"""Most levels of nested sums."""
MAX_SIZE = 2**16
"""Most channels, rows or columns of a site: sizes that torch multiplies stay within 64 bits."""
MAX_PARAMETERS = 2**24
MAX_MACS = 2**31
"""Most multiply-accumulates of one example."""
MAX_MEMORY_BYTES = 2**26
"""Most bytes of float32 activations that a training step keeps of one example."""

_KINDS = ("after", "beside")
_FIELDS = ("schema", "name", "category", "kinds", "summary", "source", "layers")
_PROBE: Shape = (64, 16, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A parsed definition; see `esper.urza.Blueprint` for the fields."""

    name: str
    category: str
    kinds: tuple[str, ...]
    summary: str
    source: str
    layers: tuple[Operation, ...]

    @property
    def text(self) -> str:
        """Canonical JSON; `parse` reads it back as an equal definition."""
        content = {name: getattr(self, name) for name in _FIELDS[1:-1]}
        return _canonical({"schema": SCHEMA, **content, "layers": [_as_json(layer) for layer in self.layers]})

    @property
    def content_hash(self) -> str:
        """SHA-256, in hex, of what it computes and where it fits; name, summary and source do not count."""
        content = {"schema": SCHEMA, "category": self.category, "kinds": self.kinds}
        layers = [_as_json(layer) for layer in self.layers]
        return hashlib.sha256(_canonical({**content, "layers": layers}).encode()).hexdigest()

    @property
    def blueprint_id(self) -> str:
        """Name and content hash: unique to a definition."""
        return f"{self.name}@{self.content_hash[:12]}"

    @property
    def complexity(self) -> int:
        """1 (norms and activations only) to 5 (four layers with weights and more)."""
        return min(5, 1 + sum(operation.weight for operation in _flatten(self.layers)))

    def build(self, in_shape: Shape, out_shape: Shape) -> Kernel:
        """Build a kernel, on torch's default device.

        Raises:
            MisfitError: it cannot grow at these shapes.
        """
        modules = (piece.module for piece in self.pieces(in_shape, out_shape))
        return ConvolutionBranch(*modules, channels=out_shape[0])

    def pieces(self, in_shape: Shape, out_shape: Shape) -> list[Piece]:
        """Build the parts of a kernel, without its last norm.

        Raises:
            MisfitError: it cannot grow at these shapes.
        """
        stride = stride_between(in_shape, out_shape)
        if stride is None:
            raise MisfitError(f"no stride leads from {in_shape} to {out_shape}")
        pieces = build_chain(self.layers, in_shape, channels=out_shape[0], stride=stride)
        last = pieces[-1].out_shape
        if last != out_shape:
            raise MisfitError(
                f"its layers lead from {in_shape} to {last}, not to {out_shape}; end in a convolution of width 1"
            )
        return pieces

    @functools.lru_cache(maxsize=4096)  # noqa: B019
    def misfit(self, in_shape: Shape, out_shape: Shape) -> str | None:
        """Why it cannot grow at these shapes, or is too large there; None: it can.

        It is built on the meta device, which takes no memory, and counted there.
        """
        if max(*in_shape, *out_shape) > MAX_SIZE:
            return f"a site of {in_shape} to {out_shape}; at most {MAX_SIZE:,} channels, rows and columns"
        try:
            with torch.device("meta"):
                pieces = self.pieces(in_shape, out_shape)
                kernel = ConvolutionBranch(*(piece.module for piece in pieces), channels=out_shape[0])
        except MisfitError as error:
            return str(error)
        cost = count(kernel, in_shape)
        sizes = {
            "parameters": (cost.num_parameters, MAX_PARAMETERS),
            "MACs": (cost.num_macs, MAX_MACS),
            "bytes of activations": (4 * sum(piece.num_values for piece in pieces), MAX_MEMORY_BYTES),
        }
        too_large = [f"{size:,} {name}, at most {most:,}" for name, (size, most) in sizes.items() if size > most]
        return ", ".join(too_large) or None

    def blueprint(self) -> Blueprint:
        """The blueprint that it declares."""
        return Blueprint(
            blueprint_id=self.blueprint_id,
            category=self.category,
            complexity=self.complexity,
            kinds=frozenset(self.kinds),
            build=self.build,
            admits=lambda in_shape, out_shape: self.misfit(in_shape, out_shape) is None,
            summary=self.summary,
            source=self.source,
            definition=self.text,
        )


def parse(text: str | bytes, *, where: str = "blueprint") -> Definition:
    """Parse and check a definition; no memory is allocated for its layers.

    Args:
        text: JSON.
        where: prefix of errors, e.g. the file.

    Raises:
        ConfigError: it is too large or not JSON, has an unknown, missing or repeated field, a value that is not
            allowed, or layers that do not fit together.
    """
    try:
        content = _json(text)
        definition = _definition(content)
        if problem := definition.misfit(_PROBE, _PROBE):
            raise ConfigError(f"layers: at a site of shape {_PROBE}: {problem}")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return definition


def _json(text: str | bytes) -> Any:
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{len(text):,} bytes; a definition has at most {MAX_BYTES:,}")
    try:
        return json.loads(text, object_pairs_hook=_unique_fields)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON ({error}); esper urza export shows an example") from None


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ConfigError(f"a field appears twice among {', '.join(name for name, _ in pairs)[:200]}; keep one")
    return fields


def _definition(content: Any) -> Definition:
    _require_fields(content, _FIELDS, "a definition")
    if content["schema"] != SCHEMA or content["schema"] is True:
        raise ConfigError(f"schema={content['schema']!r:.40}: this version of Esper reads {SCHEMA}")
    name, category, kinds = content["name"], content["category"], content["kinds"]
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,47}", name):
        raise ConfigError(f"name={name!r:.60}: allowed are up to 48 of a-z, 0-9 and _, starting with a letter")
    categories = [known for known in BLUEPRINT_CATEGORIES if known != "copy"]  # copies are of a network's blocks
    if category not in categories:
        raise ConfigError(f"category={category!r:.60}: allowed are {', '.join(categories)}")
    if not isinstance(kinds, list) or not kinds or not all(kind in _KINDS for kind in kinds):
        raise ConfigError(f"kinds={kinds!r:.60}: allowed are {', '.join(_KINDS)}, at least one")
    for field in ("summary", "source"):
        if not isinstance(content[field], str) or len(content[field]) > 200 or not content[field].isprintable():
            raise ConfigError(f"{field}={content[field]!r:.60}: allowed are up to 200 printable characters on one line")
    layers = _chain(content["layers"], "layers", depth=0)
    num_operations = sum(1 for _ in _flatten(layers))
    if not 1 <= num_operations <= MAX_OPERATIONS:
        raise ConfigError(f"layers: {num_operations} operations; allowed are 1 to {MAX_OPERATIONS}")
    return Definition(
        name=name,
        category=category,
        kinds=tuple(sorted(set(kinds))),
        summary=content["summary"],
        source=content["source"],
        layers=layers,
    )


def _chain(entries: Any, where: str, *, depth: int) -> tuple[Operation, ...]:
    if not isinstance(entries, list) or len(entries) > MAX_OPERATIONS:
        raise ConfigError(f"{where}: must be a list of at most {MAX_OPERATIONS} operations")
    return tuple(_operation(entry, f"{where}[{index}]", depth=depth) for index, entry in enumerate(entries))


def _operation(entry: Any, where: str, *, depth: int) -> Operation:
    op = entry.get("op") if isinstance(entry, dict) else None
    kind = OPERATIONS.get(op) if isinstance(op, str) else None
    if kind is None:
        raise ConfigError(f"{where}.op={op!r:.60}: allowed are {', '.join(OPERATIONS)}")
    _require_fields(entry, ("op", *(field.name for field in dataclasses.fields(kind))), where)
    if kind is Sum:
        branches = entry["branches"]
        if depth == MAX_DEPTH:
            raise ConfigError(f"{where}: sums nested more than {MAX_DEPTH} deep")
        if not isinstance(branches, list) or not 2 <= len(branches) <= MAX_BRANCHES:
            raise ConfigError(f"{where}.branches: must be a list of 2 to {MAX_BRANCHES} lists of operations")
        chains = [_chain(branch, f"{where}.branches[{i}]", depth=depth + 1) for i, branch in enumerate(branches)]
        return Sum(branches=tuple(chains))
    values = {}
    for name, allowed in choices(kind).items():
        if entry[name] not in allowed or isinstance(entry[name], bool):
            raise ConfigError(f"{where}.{name}={entry[name]!r:.60}: allowed are {', '.join(map(str, allowed))}")
        values[name] = allowed[allowed.index(entry[name])]  # 1 and 1.0 are stored, and hashed, alike
    return kind(**values)


def _require_fields(entry: Any, required: Sequence[str], where: str) -> None:
    if not isinstance(entry, dict) or entry.keys() != set(required):
        given = ", ".join(sorted(entry))[:200] or "nothing" if isinstance(entry, dict) else type(entry).__name__
        raise ConfigError(f"{where} needs exactly {', '.join(required)}; given: {given!r}")


def _as_json(operation: Operation) -> dict[str, Any]:
    op = next(name for name, kind in OPERATIONS.items() if kind is type(operation))
    if isinstance(operation, Sum):
        return {"op": op, "branches": [[_as_json(inner) for inner in branch] for branch in operation.branches]}
    return {"op": op, **{name: getattr(operation, name) for name in choices(type(operation))}}


def _flatten(chain: Sequence[Operation]) -> Iterator[Operation]:
    for operation in chain:
        yield operation
        if isinstance(operation, Sum):
            for branch in operation.branches:
                yield from _flatten(branch)


def _canonical(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
