"""Definitions that tests share: two of a kind, and a strategy for all that can be written."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from esper.urza.definition import MAX_BRANCHES
from esper.urza.operations import OPERATIONS, Sum, choices


def content(name: str = "wide_depthwise", **changes: Any) -> dict[str, Any]:
    """A definition, not yet JSON."""
    return {
        "schema": 1,
        "name": name,
        "category": "residual",
        "kinds": ["after", "beside"],
        "summary": "3x3 per channel, then two 1x1",
        "source": "arXiv:2201.03545",
        "layers": [
            {"op": "depthwise", "size": 3},
            {"op": "batch_norm"},
            {"op": "convolution", "size": 1, "width": 2},
            {"op": "activation", "function": "gelu"},
            {"op": "convolution", "size": 1, "width": 1},
        ],
        **changes,
    }


def text(name: str = "wide_depthwise", **changes: Any) -> str:
    return json.dumps(content(name, **changes))


def _plain() -> st.SearchStrategy[dict[str, Any]]:
    kinds = {op: kind for op, kind in OPERATIONS.items() if kind is not Sum}
    return st.one_of(
        *(
            st.fixed_dictionaries(
                {"op": st.just(op), **{name: st.sampled_from(values) for name, values in choices(kind).items()}}
            )
            for op, kind in kinds.items()
        )
    )


def chains(max_size: int = 4) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Chains of operations with sums in them, whether or not they fit anywhere."""
    operations = st.recursive(
        _plain(),
        lambda inner: st.fixed_dictionaries(
            {
                "op": st.just("sum"),
                "branches": st.lists(st.lists(inner, max_size=2), min_size=2, max_size=MAX_BRANCHES),
            }
        ),
        max_leaves=3,
    )
    return st.lists(operations, min_size=1, max_size=max_size)
