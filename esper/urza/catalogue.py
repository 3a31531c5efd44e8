"""The blueprints that Esper knows."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from esper.errors import ConfigError
from esper.urza import attention, definition, foldable, normalization, residual, width
from esper.urza.kernel import Blueprint, Shape

__all__ = ["CATALOGUE", "declare", "fitting", "get"]

_AFTER = frozenset({"after"})
_ANYWHERE = frozenset({"after", "beside"})
_PARALLEL = frozenset({"parallel"})
_WIDTH = frozenset({"width"})

CATALOGUE: Mapping[str, Blueprint] = MappingProxyType(
    {
        blueprint.blueprint_id: blueprint
        for blueprint in (
            Blueprint(
                blueprint_id="basic_block",
                category="residual",
                complexity=5,
                kinds=_ANYWHERE,
                build=residual.basic_block,
                summary="two 3x3 convolutions",
                source="arXiv:1512.03385",
            ),
            Blueprint(
                blueprint_id="residual_block",
                category="residual",
                complexity=5,
                kinds=_AFTER,
                keeps_shape=True,
                foldable=True,
                build=residual.residual_block,
                summary="one more basic block of the stage, the identity at birth",
                source="arXiv:1906.02909",
            ),
            Blueprint(
                blueprint_id="bottleneck",
                category="residual",
                complexity=4,
                kinds=_ANYWHERE,
                build=residual.bottleneck,
                summary="1x1, 3x3, 1x1 through a quarter of the channels, at least 4",
                source="arXiv:1512.03385",
            ),
            Blueprint(
                blueprint_id="depthwise",
                category="residual",
                complexity=3,
                kinds=_ANYWHERE,
                build=residual.depthwise,
                summary="3x3 per channel, then 1x1",
                source="arXiv:1704.04861",
            ),
            Blueprint(
                blueprint_id="conv1x1",
                category="residual",
                complexity=2,
                kinds=_ANYWHERE,
                build=residual.conv1x1,
                summary="one 1x1 convolution",
                source="arXiv:2101.03697",
            ),
            Blueprint(
                blueprint_id="fold_asymmetric",
                category="residual",
                complexity=4,
                kinds=_PARALLEL,
                foldable=True,
                build=foldable.fold_asymmetric,
                summary="1x3 plus 3x1, folded into the convolution at export",
                source="arXiv:1908.03930",
            ),
            Blueprint(
                blueprint_id="fold_3x3",
                category="residual",
                complexity=3,
                kinds=_PARALLEL,
                foldable=True,
                build=foldable.fold_3x3,
                summary="one 3x3 convolution, folded into the convolution at export",
                source="arXiv:1811.10495",
            ),
            Blueprint(
                blueprint_id="fold_1x1",
                category="residual",
                complexity=2,
                kinds=_PARALLEL,
                foldable=True,
                build=foldable.fold_1x1,
                summary="one 1x1 convolution, folded into the convolution at export",
                source="arXiv:2101.03697",
            ),
            Blueprint(
                blueprint_id="widen",
                category="residual",
                complexity=4,
                kinds=_WIDTH,
                foldable=True,
                build=width.widen,
                summary="inner channels: half as many again, in eights",
                source="arXiv:1511.05641",
            ),
            Blueprint(
                blueprint_id="spatial_self_attention",
                category="attention",
                complexity=4,
                kinds=_AFTER,
                keeps_shape=True,
                min_positions=2,  # a softmax over one position is constant
                max_positions=1024,
                build=attention.spatial_self_attention,
                summary="multi-head self-attention over positions",
                source="arXiv:1711.07971",
            ),
            Blueprint(
                blueprint_id="squeeze_excite",
                category="attention",
                complexity=2,
                kinds=_AFTER,
                keeps_shape=True,
                build=attention.squeeze_excite,
                summary="channels reweighted by a small network of their means",
                source="arXiv:1709.01507",
            ),
            Blueprint(
                blueprint_id="efficient_channel",
                category="attention",
                complexity=1,
                kinds=_AFTER,
                keeps_shape=True,
                build=attention.efficient_channel,
                summary="channels reweighted by their neighbours' means",
                source="arXiv:1910.03151",
            ),
            Blueprint(
                blueprint_id="group_norm",
                category="normalization",
                complexity=1,
                kinds=_AFTER,
                keeps_shape=True,
                min_positions=2,  # a group of one value is normalised to 0
                build=normalization.group_norm,
                summary="the input, normalised in groups of channels",
                source="arXiv:1803.08494",
            ),
            Blueprint(
                blueprint_id="layer_scale",
                category="normalization",
                complexity=1,
                kinds=_AFTER,
                keeps_shape=True,
                build=normalization.layer_scale,
                summary="a gain per channel",
                source="arXiv:2103.17239",
            ),
        )
    }
)


# An id holds the hash of its content, so that an entry never changes: whoever declares it, whenever, means the same.
_declared: dict[str, Blueprint] = {}


def declare(text: str | bytes, *, where: str = "blueprint") -> Blueprint:
    """Make a definition known in this process, under its id (`name@hash`); see `esper.urza.definition`.

    Raises:
        ConfigError: it cannot be used, or has the name of a built-in blueprint.
    """
    declared = definition.blueprint(definition.parse(text, where=where))
    name = declared.blueprint_id.partition("@")[0]
    if name in CATALOGUE:
        raise ConfigError(f"{where}: name={name}: Esper has one of that name built in; choose another")
    return _declared.setdefault(declared.blueprint_id, declared)


def get(blueprint_id: str) -> Blueprint:
    """Look up a built-in blueprint by its name, or a declared one by its id.

    Raises:
        ConfigError: there is none of that name.
    """
    known = {**CATALOGUE, **_declared}
    if blueprint_id not in known:
        near = difflib.get_close_matches(blueprint_id, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no blueprint {blueprint_id!r}{hint} (there are {', '.join(known)})")
    return known[blueprint_id]


def fitting(
    kind: str,
    in_shape: Shape,
    out_shape: Shape,
    *,
    categories: Sequence[str],
    max_complexity: int,
    only: str | None = None,
    library: Sequence[str] = (),
) -> list[Blueprint]:
    """The blueprints that may grow at a site, the preferred first.

    Args:
        kind: kind of the site.
        in_shape, out_shape: (C, H, W) of the kernel's input and output.
        categories: allowed categories; the earlier, the more preferred. Within one, the most complex comes first.
        max_complexity: most complex blueprint allowed.
        only: allow only this one.
        library: ids of declared blueprints that may grow too.
    """
    found = [
        blueprint
        for blueprint in (*CATALOGUE.values(), *map(get, library))
        if blueprint.category in categories
        and blueprint.complexity <= max_complexity
        and only in (None, blueprint.blueprint_id)
        and blueprint.fits(kind, in_shape, out_shape)
    ]
    return sorted(found, key=lambda b: (list(categories).index(b.category), -b.complexity, b.blueprint_id))
