from __future__ import annotations

import math

import pytest
import torch

from esper.configs import ModelConfig
from esper.data import DataSpec
from esper.errors import ConfigError
from esper.models import build_host
from esper.models.gpt import GPT, describe

SPEC = DataSpec(inputs=(12,), dtype=torch.int64, num_outputs=50)


def gpt(*, positions: str = "learned", depth: int = 2) -> GPT:
    torch.manual_seed(0)
    network = build_host(config(positions=positions, depth=depth), SPEC)
    assert isinstance(network, GPT)
    return network


def config(*, positions: str = "learned", depth: int = 2) -> ModelConfig:
    return ModelConfig(name="gpt", width=16, depth=depth, heads=2, positions=positions)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_token_changes_only_the_logits_at_its_place_and_behind(positions: str) -> None:
    network, tokens = gpt(positions=positions), torch.randint(0, 50, (3, 12))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 50
    before, after = network(tokens), network(changed)
    assert before.shape == (3, 12, 50)
    assert torch.equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(2).all()


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_order_of_earlier_tokens_matters(positions: str) -> None:
    network = gpt(positions=positions)
    logits = network(torch.tensor([[1, 2, 3], [2, 1, 3]]))[:, -1]
    assert not torch.allclose(logits[0], logits[1], atol=1e-6)


def test_a_shorter_window_gives_the_same_logits() -> None:
    for positions in ("learned", "rotary"):
        network, tokens = gpt(positions=positions), torch.randint(0, 50, (2, 12))
        assert torch.allclose(network(tokens)[:, :5], network(tokens[:, :5]), atol=1e-6)


def test_rotary_attention_depends_on_distances_alone() -> None:
    attention = gpt(positions="rotary").blocks[0].attention
    q, k = torch.randn(1, 1, 1, 8).expand(1, 1, 12, 8), torch.randn(1, 1, 1, 8).expand(1, 1, 12, 8)
    scores = (attention._rotated(q) @ attention._rotated(k).mT)[0, 0]
    for distance in (0, 3):
        diagonal = scores.diagonal(-distance)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5)
    assert not torch.allclose(scores[3, 0], scores[0, 0], atol=1e-3)


def test_initial_weights_are_those_of_nanogpt() -> None:
    torch.manual_seed(0)
    network = build_host(ModelConfig(name="gpt", width=256, depth=8, heads=4), SPEC).requires_grad_(False)
    block = network.get_submodule("blocks.3")
    assert float(block.attention.qkv.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(block.mlp.out.weight.std()) == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
    loss = torch.nn.functional.cross_entropy(
        network(torch.randint(0, 50, (4, 12))).flatten(0, 1), torch.zeros(48).long()
    )
    assert float(loss) == pytest.approx(math.log(50), rel=0.1)


def test_an_export_says_its_sizes() -> None:
    found = describe(config(), SPEC, gpt(depth=3))
    assert (found["mlp_widths"], found["context"], found["vocab_size"]) == ([64] * 3, 12, 50)


def test_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="model=gpt: reads text; use dataset=text or dataset=python_source"):
        build_host(config(), DataSpec(inputs=(3, 8, 8), num_outputs=10))
