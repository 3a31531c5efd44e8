"""Copies of trained blocks behind blocks of the host."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from esper.configs import ModelConfig
from esper.contracts.recipe import Graft
from esper.data import DataSpec
from esper.errors import SurgeryError
from esper.kasmina import MorphableModel, fold, surgery, wrap
from esper.kasmina.copies import copies_cost, copy_sources, share_gains, stage_plan
from esper.kasmina.scores import score_sites
from esper.models import build_host, checkpoint_blocks, is_checkpointed

CONFIG = ModelConfig(name="resnet_small", widths=[4, 8], depths=[2, 2], target_layers=["layer1", "layer2"])


def host() -> nn.Module:
    return build_host(CONFIG, DataSpec(inputs=(3, 8, 8), num_outputs=5))


def trained_model() -> MorphableModel:
    """A host whose norms and gains are not those of a new network."""
    torch.manual_seed(0)
    network = host()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    model = wrap(network, CONFIG.target_layers, 16, input_shape=(3, 8, 8), site_kinds=["after"])
    model.build_host = host
    return model.eval()


def entry(model: MorphableModel, site: str, *, number: int = 1, init: str = "trained", order: str = "stack") -> Graft:
    return Graft(
        graft_id=number,
        site=site,
        blueprint_id="copy",
        init_seed=number,
        init_gain=1.0,
        born_step=3,
        sources=copy_sources(model, model.slot(site), order),
        copy_init=init,
    )


def keep_copies(model: MorphableModel, site: str, **fields: object) -> Graft:
    graft = entry(model, site, **fields)  # type: ignore[arg-type]
    surgery.germinate(model, graft, images=torch.randn(16, 3, 8, 8), epoch=1)
    slot = model.slot(site)
    surgery.begin_blending(slot, step=3, epoch=1)
    surgery.set_alpha(slot, step=3, blending_steps=0)
    surgery.hold(slot, epoch=1)
    surgery.fossilize(slot, epoch=1)
    return graft


@pytest.mark.parametrize(
    ("chains", "copyable", "order", "plan"),
    [
        ({"a": ["a"], "b": ["b"]}, "ab", "stack", {"b": ("a", "b")}),
        ({"a": ["a"], "b": ["b"], "c": ["c"]}, "abc", "stack", {"c": ("a", "b", "c")}),
        ({"a": ["a"], "b": ["b"], "c": ["c"]}, "bc", "stack", {"c": ("c", "b", "c")}),
        ({"a": ["a"], "b": ["b"]}, "b", "stack", {"b": ("b", "b")}),
        ({"a": ["a"], "b": ["b", "b+1", "b+2"]}, "b", "stack", {"b": ("b+2", "b", "b+1", "b+2")}),
        ({"a": ["a"], "b": ["b"]}, "ab", "interleave", {"a": ("a",), "b": ("b",)}),
        ({"a": ["a"], "b": ["b"], "c": ["c"]}, "bc", "interleave", {"b": ("b",), "c": ("c", "c")}),
        ({"a": ["a"], "b": ["b", "b+1"]}, "b", "interleave", {"b": ("b+1", "b", "b+1")}),
        ({"a": ["a"]}, "", "stack", {}),
    ],
)
def test_a_stage_doubles_its_depth(
    chains: dict[str, list[str]], copyable: str, order: str, plan: dict[str, tuple[str, ...]]
) -> None:
    assert stage_plan(chains, copyable, order) == plan


def test_a_stacked_network_computes_its_chain_twice() -> None:
    model, images = trained_model(), torch.randn(7, 3, 8, 8)
    expected = copy.deepcopy(model.host)
    expected.layer1 = nn.Sequential(*expected.layer1, *copy.deepcopy(expected.layer1))
    last = expected.layer2[1]
    expected.layer2 = nn.Sequential(*expected.layer2, copy.deepcopy(last), copy.deepcopy(last))
    keep_copies(model, "layer1.1:after", number=1)
    keep_copies(model, "layer2.1:after", number=2)
    with torch.no_grad():
        assert torch.equal(model(images), expected(images))


def test_attaching_copies_leaves_the_output_bit_identical() -> None:
    model, images = trained_model(), torch.randn(7, 3, 8, 8)
    with torch.no_grad():
        before = model(images)
        surgery.germinate(model, entry(model, "layer1.1:after"), images=images, epoch=1)
        assert torch.equal(model(images), before)


def test_copies_have_the_values_of_their_source_but_tensors_of_their_own() -> None:
    model = trained_model()
    graft = keep_copies(model, "layer2.1:after")
    source = model.host.get_submodule("layer2.1").state_dict()
    first, second = model.slot("layer2.1:after").kernel(graft).blocks
    for copied in (first.state_dict(), second.state_dict()):
        assert copied.keys() == source.keys()
        assert all(torch.equal(copied[name], source[name]) for name in source)
    storages = [t.data_ptr() for state in (source, first.state_dict(), second.state_dict()) for t in state.values()]
    assert len(storages) == len(set(storages))


def test_a_second_doubling_copies_the_copies_too() -> None:
    model, images = trained_model(), torch.randn(7, 3, 8, 8)
    expected = copy.deepcopy(model.host)
    expected.layer1 = nn.Sequential(*(copy.deepcopy(block) for _ in range(4) for block in expected.layer1))
    slot = model.slot("layer1.1:after")
    keep_copies(model, "layer1.1:after", number=1)
    cost = copies_cost(model, slot, "stack")
    kernel = slot.kernel(keep_copies(model, "layer1.1:after", number=2))
    assert kernel.origins == ("layer1.0", "layer1.1", "layer1.0", "layer1.1")
    assert cost.num_parameters == sum(p.numel() for p in kernel.parameters())
    with torch.no_grad():
        assert torch.equal(model(images), expected(images))


def test_the_source_of_a_second_copy_is_the_copy_that_it_began_as() -> None:
    model = trained_model()
    kernel = model.slot("layer1.1:after").kernel(keep_copies(model, "layer1.1:after", number=1))
    second = keep_copies(model, "layer1.1:after", number=2)
    assert second.sources == ("layer1.0", "layer1.1", "layer1.1+1", "layer1.1+2")
    blocks = [*model.host.get_submodule("layer1"), *kernel.blocks]
    sources = [source for source, _ in model.copied_parameters(second)]
    assert list(map(id, sources)) == [id(p) for block in blocks for p in block.parameters()]


def test_a_block_with_dead_units_is_copied_as_it_is() -> None:
    model = trained_model()
    nn.init.constant_(model.host.get_submodule("layer2.1").bn1.bias, -1e3)  # no gradient reaches its convolutions
    keep_copies(model, "layer2.1:after")
    assert len(model.recipe) == 1


def test_copies_recompute_their_activations_if_their_sources_do() -> None:
    def gradients(*, recomputed: bool) -> tuple[MorphableModel, list[Tensor]]:
        model = trained_model()
        if recomputed:
            checkpoint_blocks([model.host.get_submodule(f"layer1.{i}") for i in (0, 1)])
        keep_copies(model, "layer1.1:after", number=1)
        keep_copies(model, "layer1.1:after", number=2)
        images = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        model.train()(images).logsumexp(1).sum().backward()
        return model, [p.grad for p in model.parameters() if p.grad is not None]

    model, mine = gradients(recomputed=True)
    plain, theirs = gradients(recomputed=False)
    blocks = [block for graft in model.recipe for block in model.slot(graft.site).kernel(graft).blocks]
    assert [is_checkpointed(block) for block in blocks] == [True] * 6
    assert all(map(torch.equal, mine, theirs))
    assert all(map(torch.equal, model.buffers(), plain.buffers()))


def test_zeroed_copies_do_not_change_the_network() -> None:
    model, images = trained_model(), torch.randn(7, 3, 8, 8)
    with torch.no_grad():
        before = model(images)
        keep_copies(model, "layer1.1:after", init="zeroed")
        assert torch.equal(model(images), before)


def test_a_block_and_its_copies_share_the_gain_of_its_last_norm() -> None:
    """Two copies of one block: each of the three gets a third."""
    model = trained_model()
    norm, inner = model.host.layer2[1].bn2, model.host.layer2[1].bn1
    gain, bias, inner_gain = norm.weight.clone(), norm.bias.clone(), inner.weight.clone()
    graft = keep_copies(model, "layer2.1:after")
    assert graft.sources == ("layer2.1", "layer2.1")
    share_gains(model, graft)
    for block in (model.host.layer2[1], *model.slot("layer2.1:after").kernel(graft).blocks):
        torch.testing.assert_close(block.bn2.weight, gain / 3)
        torch.testing.assert_close(block.bn2.bias, bias / 3)
        assert torch.equal(block.bn1.weight, inner_gain)


def tie_norms(*blocks: nn.Module) -> tuple[Tensor, Tensor]:
    """Let blocks share weight and bias of their last norm; returns their values."""
    for block in blocks:
        block.bn2.weight, block.bn2.bias = blocks[0].bn2.weight, blocks[0].bn2.bias
    return blocks[0].bn2.weight.detach().clone(), blocks[0].bn2.bias.detach().clone()


def assert_last_norms(blocks: Iterable[nn.Module], gain: Tensor, bias: Tensor) -> None:
    for block in blocks:
        torch.testing.assert_close(block.bn2.weight, gain)
        torch.testing.assert_close(block.bn2.bias, bias)


@pytest.mark.parametrize("is_module", [False, True])
def test_a_norm_that_blocks_share_is_divided_once(is_module: bool) -> None:
    model = trained_model()
    first, second = model.host.get_submodule("layer1")
    gain, bias = tie_norms(first, second)
    if is_module:
        second.bn2 = first.bn2
    graft = keep_copies(model, "layer1.1:after", init="shared")
    share_gains(model, graft)
    assert_last_norms([first, second, *model.slot("layer1.1:after").kernel(graft).blocks], gain / 2, bias / 2)


def test_a_norm_shared_by_blocks_of_one_doubling_is_divided_once_all_have_copies() -> None:
    """As `interleave` copies each block by itself; until then, a block without copies would do less."""
    model = trained_model()
    first, second = model.host.get_submodule("layer1")
    gain, bias = tie_norms(first, second)
    grafts = []
    for number, site in enumerate(("layer1.0:after", "layer1.1:after"), start=1):
        assert torch.equal(second.bn2.weight, gain)
        grafts.append(keep_copies(model, site, number=number, init="shared", order="interleave"))
        share_gains(model, grafts[-1])
    copies = (model.slot(graft.site).kernel(graft).blocks[0] for graft in grafts)
    assert_last_norms([first, second, *copies], gain / 2, bias / 2)


def test_a_norm_shared_with_a_block_that_is_not_copied_keeps_its_gain() -> None:
    """The first block of layer2 changes its input's shape."""
    model = trained_model()
    first, second = model.host.get_submodule("layer2")
    gain, _ = tie_norms(first, second)
    graft = keep_copies(model, "layer2.1:after", init="shared")
    share_gains(model, graft)
    for block in (first, *model.slot("layer2.1:after").kernel(graft).blocks):
        assert torch.equal(block.bn2.weight, gain)


def test_blocks_with_unequal_numbers_of_copies_that_share_a_norm_keep_the_sum_of_their_gains() -> None:
    torch.manual_seed(0)
    config = ModelConfig(name="resnet_small", widths=[4, 8], depths=[2, 3], target_layers=["layer1", "layer2"])
    network = build_host(config, DataSpec(inputs=(3, 8, 8), num_outputs=5))
    model = wrap(network, config.target_layers, 16, input_shape=(3, 8, 8), site_kinds=["after"]).eval()
    _, first, second = model.host.get_submodule("layer2")
    nn.init.uniform_(first.bn2.weight, 0.5, 1.5)
    gain, _ = tie_norms(first, second)
    graft = keep_copies(model, "layer2.2:after", init="shared")
    assert graft.sources == ("layer2.2", "layer2.1", "layer2.2")
    share_gains(model, graft)
    last, middle, again = (block.bn2.weight for block in model.slot("layer2.2:after").kernel(graft).blocks)
    torch.testing.assert_close(first.bn2.weight, gain / 3)
    torch.testing.assert_close(first.bn2.weight + middle, gain)
    torch.testing.assert_close(second.bn2.weight + last + again, gain)


def test_sharing_the_gain_changes_the_output_less_than_copies_at_full_strength() -> None:
    changes = {}
    for init in ("trained", "shared"):
        model, images = trained_model(), torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            before = model(images)
            graft = keep_copies(model, "layer1.1:after", init=init)
            if init == "shared":
                share_gains(model, graft)
            changes[init] = float((model(images) - before).norm() / before.norm())
    assert changes["shared"] < 0.5 * changes["trained"]


def test_fresh_copies_have_initial_weights_of_the_host_each_its_own() -> None:
    model = trained_model()
    graft = keep_copies(model, "layer2.1:after", init="fresh")
    first, second = model.slot("layer2.1:after").kernel(graft).blocks
    torch.manual_seed(graft.init_seed)
    drawn = host().get_submodule("layer2.1").state_dict()
    assert all(torch.equal(first.state_dict()[name], drawn[name]) for name in drawn)
    assert not torch.equal(first.conv1.weight, second.conv1.weight)
    assert torch.equal(first.bn1.weight, torch.ones(8))


def test_folded_copies_are_blocks_of_their_stage() -> None:
    model, images = trained_model(), torch.randn(7, 3, 8, 8)
    keep_copies(model, "layer1.1:after", number=1)
    keep_copies(model, "layer2.1:after", number=2)
    folded = fold(model)
    assert [len(folded.layer1), len(folded.layer2)] == [4, 4]
    deeper = build_host(
        ModelConfig(name="resnet_small", widths=[4, 8], depths=[4, 4]), DataSpec(inputs=(3, 8, 8), num_outputs=5)
    )
    deeper.load_state_dict(folded.state_dict())
    with torch.no_grad():
        assert torch.equal(folded(images), model(images))
        assert torch.equal(deeper.eval()(images), model(images))


class Bottlenecks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.layer1 = nn.Sequential(*(Bottleneck(16, 4) for _ in range(3)))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_bottleneck_blocks_are_copied_and_folded() -> None:
    torch.manual_seed(0)
    model = wrap(Bottlenecks(), ["layer1"], 16, input_shape=(3, 8, 8), site_kinds=["after"]).eval()
    expected = copy.deepcopy(model.host)
    expected.layer1 = nn.Sequential(*expected.layer1, *copy.deepcopy(expected.layer1))
    keep_copies(model, "layer1.2:after")
    images = torch.randn(7, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(images), expected(images))
        assert torch.equal(fold(model)(images), expected(images))
    assert len(fold(model).layer1) == 6


def test_a_stage_with_copies_is_scored_like_one_built_that_deep() -> None:
    model = trained_model()
    keep_copies(model, "layer1.1:after", number=1)
    keep_copies(model, "layer1.1:after", number=2)
    deeper = wrap(fold(model), CONFIG.target_layers, 16, input_shape=(3, 8, 8), site_kinds=["after"])
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(9, 3, 8, 8, generator=generator), torch.randint(5, (9,), generator=generator))] * 2
    mine, expected = score_sites(model, batches), score_sites(deeper, batches)
    assert mine["layer1.1:after"].score == pytest.approx(expected["layer1.7:after"].score, rel=1e-6)
    assert mine["layer2.1:after"].score == pytest.approx(expected["layer2.1:after"].score, rel=1e-6)
    assert mine["layer1.1:after"].score > 0


def test_a_block_in_which_something_else_grew_is_not_copied() -> None:
    torch.manual_seed(0)
    model = wrap(host(), CONFIG.target_layers, 16, input_shape=(3, 8, 8), site_kinds=["beside", "after"])
    other = Graft(graft_id=1, site="layer1.0:beside", blueprint_id="conv1x1", init_seed=1, init_gain=1.0, born_step=1)
    surgery.germinate(model, other, images=torch.randn(16, 3, 8, 8), epoch=1)
    with pytest.raises(SurgeryError, match=r"'layer1\.0' cannot be copied: 'conv1x1' stands at 'layer1\.0:beside'"):
        model.graft(entry(model, "layer1.1:after", number=2))


def test_a_copy_runs_its_own_forward_function_where_the_source_is_compiled() -> None:
    model = trained_model()
    block = model.host.get_submodule("layer1.1")
    plain: Callable[[Tensor], Tensor] = block.forward
    block.forward = lambda x: plain(x)  # as regional compilation replaces it
    graft = keep_copies(model, "layer1.1:after")
    copied = model.slot("layer1.1:after").kernel(graft).blocks[1]
    nn.init.zeros_(copied.bn2.weight)
    nn.init.zeros_(copied.bn2.bias)
    y = torch.rand(2, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(copied(y), y)
        assert not torch.equal(block(y), y)


def test_a_copy_has_its_sources_own_hooks_but_not_those_of_slots() -> None:
    """As those of spectral norm, which computes the weight from the parameter that is trained."""
    torch.manual_seed(0)
    network = Bottlenecks()
    for block in network.layer1:
        nn.utils.spectral_norm(block.conv2)
    model = wrap(network, ["layer1"], 16, input_shape=(3, 8, 8), site_kinds=["after"]).eval()
    first = model.slot("layer1.2:after").kernel(keep_copies(model, "layer1.2:after")).blocks[2]
    second = model.slot("layer1.2:after").kernel(keep_copies(model, "layer1.2:after", number=2)).blocks[2]
    for copied in (first, second):
        assert len(copied.conv2._forward_pre_hooks) == 1
        assert not copied._forward_hooks
        copied(torch.randn(2, 16, 8, 8)).sum().backward()
        assert copied.conv2.weight_orig.grad is not None


def test_the_default_start_of_copies_suits_norms_without_gain() -> None:
    torch.manual_seed(0)
    network = Bottlenecks()
    for block in network.layer1:
        block.bn3 = nn.BatchNorm2d(16, affine=False)
    model = wrap(network, ["layer1"], 16, input_shape=(3, 8, 8), site_kinds=["after"]).eval()
    graft = keep_copies(model, "layer1.2:after", init="shared")
    share_gains(model, graft)
    assert torch.equal(model.slot("layer1.2:after").kernel(graft).blocks[0].bn1.weight, network.layer1[0].bn1.weight)
    with pytest.raises(SurgeryError, match="has no batch norm with a gain at its end"):
        model.graft(entry(model, "layer1.2:after", number=2, init="zeroed"))
