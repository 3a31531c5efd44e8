"""The drawing of a network and what grew in it."""

from __future__ import annotations

import pytest

from esper.report.architecture import Block, draw, tail
from esper.tracking.history import GrownModule


@pytest.mark.parametrize(("blueprint", "num_sums"), [("copy", 0), ("residual_block", 1)])
def test_copies_are_blocks_of_the_chain_and_other_modules_branches_around_it(blueprint: str, num_sums: int) -> None:
    module = GrownModule(
        graft_id=1, site="layer1.0:after", blueprint_id=blueprint, step=6, added_parameters=1, added_macs=1,
        state="fossilized",
    )  # fmt: skip
    block = Block(name="layer1.0", shape="4×8×8", beside=None, after=[module])
    shapes = draw([block], grown=True).shapes
    host, grown = (
        next(shape for shape in shapes if shape.kind == "box" and shape.style == s) for s in ("host", "kept")
    )
    is_in_chain = grown.x + grown.width / 2 == host.x + host.width / 2
    assert is_in_chain == (num_sums == 0)
    assert sum(shape.kind == "sum" for shape in shapes) == num_sums
    assert draw([block], grown=False).height == draw([block], grown=True).height


def test_names_that_are_too_long_for_their_box_show_what_tells_them_apart() -> None:
    module = GrownModule(
        graft_id=12, site="encoder.layers.encoder_layer_0:after", blueprint_id="spatial_self_attention", step=6,
        added_parameters=1, added_macs=1, state="fossilized",
    )  # fmt: skip
    blocks = [
        Block(name=f"encoder.layers.encoder_layer_{i}", shape="17×24", beside=None, after=[module]) for i in (0, 1)
    ]
    boxes = [shape for shape in draw(blocks, grown=True).shapes if shape.kind == "box"]
    assert [box.lines[0] for box in boxes if box.style == "host"] == ["…yers.encoder_layer_0", "…yers.encoder_layer_1"]
    assert next(box.lines for box in boxes if box.style == "kept") == ("12  spatial_self_attent…  ✓",)
    assert boxes[-1].lines == ("output",)  # the network need not be a classifier
    assert tail("a.layers.b", 9) == "…layers.b"
    assert tail("layers.b", 8) == "layers.b"
