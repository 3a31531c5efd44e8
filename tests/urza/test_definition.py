from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from esper import costs, tezzeret, urza
from esper.configs import MorphogeneticConfig
from esper.errors import ConfigError
from esper.urza import definition as d
from tests.urza.definitions import chains, content, text

SHAPES = [((8, 4, 4), (8, 4, 4)), ((8, 5, 5), (12, 3, 3)), ((6, 4, 4), (12, 4, 4))]


def parsed(layers: Any) -> d.Definition:
    try:
        return d.parse(text(layers=[*layers, {"op": "convolution", "size": 1, "width": 1}]))
    except ConfigError as error:
        assume("at a site of shape" not in str(error))  # well written, but its shapes do not meet
        raise


@settings(max_examples=40)
@given(chains())
def test_a_definition_reads_back_equal_and_keeps_its_hash(layers: Any):
    definition = parsed(layers)
    again = d.parse(definition.text)
    assert again == definition
    assert (again.text, again.blueprint_id) == (definition.text, definition.blueprint_id)


@settings(max_examples=40)
@given(chains(), st.sampled_from(SHAPES))
def test_where_it_fits_it_builds_with_the_output_shape_and_cost_that_were_planned(layers: Any, shapes: Any):
    definition, (in_shape, out_shape) = parsed(layers), shapes
    assume(definition.misfit(in_shape, out_shape) is None)
    kernel = definition.build(in_shape, out_shape)
    assert kernel(torch.zeros(2, *in_shape)).shape[1:] == out_shape
    blueprint = urza.declare(definition.text)
    assert tezzeret.kernel_cost(blueprint.blueprint_id, in_shape, out_shape) == costs.count(kernel, in_shape)


def test_the_hash_is_the_same_in_every_process_and_version():
    assert d.parse(text()).blueprint_id == "wide_depthwise@04537be1d294"


def test_the_hash_depends_on_layers_and_sites_and_not_on_the_name():
    first, renamed = d.parse(text()), d.parse(text("other", summary="else", source=""))
    assert first.content_hash == renamed.content_hash
    assert d.parse(text(kinds=["beside", "after", "after"])) == first
    assert d.parse(text(kinds=["after"])).content_hash != first.content_hash


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"extra": 1}, "needs exactly schema, name"),
        ({"schema": 2}, "schema=2: this version of Esper reads 1"),
        ({"name": "../x"}, "name='../x': allowed"),
        ({"name": "squeeze_excite"}, "a built-in blueprint has this name"),
        ({"category": "evil"}, "category='evil': allowed are residual"),
        ({"category": "copy"}, "category='copy': allowed are residual"),
        ({"kinds": ["width"]}, "kinds=.*allowed are after, beside"),
        ({"summary": "\x1b[2J"}, "summary="),
        ({"layers": []}, "0 operations"),
        ({"layers": [{"op": "eval"}]}, r"layers\[0\].op='eval': allowed are activation"),
        ({"layers": [{"op": ["sum"]}]}, r"layers\[0\].op="),
        ({"layers": [{"op": "convolution", "size": 3}]}, r"layers\[0\] needs exactly op, size, width"),
        ({"layers": [{"op": "convolution", "size": 9, "width": 1}]}, r"size=9: allowed are 1, 3, 5, 7"),
        ({"layers": [{"op": "convolution", "size": True, "width": 1}]}, "size=True"),
        ({"layers": [{"op": "convolution", "size": 1, "width": 0.5}]}, "end in a convolution of width 1"),
        ({"layers": [{"op": "sum", "branches": [[]]}]}, "2 to 4 lists"),
        ({"layers": [{"op": "batch_norm"}] * 25}, "at most 24"),
        ({"layers": [{"op": "sum", "branches": [[{"op": "batch_norm"}] * 12] * 2}]}, "25 operations"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_line(changes: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says) as refused:
        urza.declare(json.dumps({**content(), **changes}), where="FILE")
    assert str(refused.value).startswith("FILE: ")
    assert "\n" not in str(refused.value)


def test_sums_are_nested_three_deep_at_most():
    def nested(depth: int) -> dict[str, Any]:
        inner = [nested(depth - 1)] if depth > 1 else []
        return {"op": "sum", "branches": [inner, []]}

    d.parse(text(layers=[nested(3)]))
    with pytest.raises(ConfigError, match="nested more than 3 deep"):
        d.parse(text(layers=[nested(4)]))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"[" * 100_000, "at most 65,536"),
        (b"[" * 60_000, "not JSON|needs exactly"),
        (b"\xff\xfe{", "not JSON"),
        (b"9" * 5000, "not JSON"),
        (b'{"schema": 1, "schema": 1}', "twice"),
        (b"null", "given: 'NoneType'"),
    ],
)
def test_garbage_is_refused_in_one_line(raw: bytes, says: str):
    with pytest.raises(ConfigError, match=says) as refused:
        d.parse(raw)
    assert "\n" not in str(refused.value)


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.floats(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_arbitrary_json_in_place_of_the_layers_is_refused(layers: Any):
    assume(layers != [])
    with pytest.raises(ConfigError):
        d.parse(text(layers=layers))


@pytest.mark.parametrize(
    ("layers", "shape", "says"),
    [
        ([{"op": "convolution", "size": 7, "width": 1}], (1024, 4, 4), "51,382,272 parameters, at most 16,777,216"),
        ([{"op": "convolution", "size": 7, "width": 1}], (2**16, 2, 2), "210,453,528,576 parameters, at most"),
        ([{"op": "convolution", "size": 7, "width": 1}], (256, 64, 64), "MACs, at most"),
        ([{"op": "batch_norm"}] * 20, (256, 64, 64), "bytes of activations, at most"),
        ([{"op": "self_attention", "heads": 1}], (8, 64, 64), "2 to 1024 positions, not 4096"),
        ([{"op": "depthwise", "size": 7}], (1, 1, 10**12), "at most 65,536 channels, rows and columns"),
        ([{"op": "group_norm", "groups": 8}], (12, 4, 4), "cannot split 12 channels"),
    ],
)
def test_where_it_would_be_too_large_it_does_not_fit(layers: Any, shape: Any, says: str):
    definition = d.parse(text("caps", layers=layers))
    assert says in (definition.misfit(shape, shape) or "")
    assert not definition.blueprint().fits("after", shape, shape)
    assert definition.blueprint().fits("after", (64, 8, 8), (64, 8, 8))


def test_without_a_convolution_outside_of_sums_it_fits_no_strided_site():
    layers = [{"op": "sum", "branches": [[], [{"op": "depthwise", "size": 3}]]}]
    found = d.parse(text("keeps", layers=layers)).blueprint()
    assert found.fits("beside", (8, 4, 4), (8, 4, 4))
    assert not found.fits("beside", (8, 4, 4), (8, 2, 2))


def test_a_declared_blueprint_may_grow_where_the_library_names_it():
    blueprint = urza.declare(text())
    shape = (8, 4, 4)
    assert blueprint not in urza.allowed(MorphogeneticConfig(), "after", shape, shape)
    config = MorphogeneticConfig(library=[blueprint.blueprint_id])
    assert blueprint in urza.allowed(config, "after", shape, shape)


def test_a_declared_kernel_passes_the_forge_s_checks():
    blueprint = urza.declare(text())
    kernel = tezzeret.build_kernel(
        blueprint.blueprint_id, in_shape=(8, 4, 4), out_shape=(12, 2, 2), init_seed=0, output_scale=0.5
    )
    assert tezzeret.check_kernel(kernel, torch.randn(4, 8, 4, 4), (12, 2, 2)).is_open
