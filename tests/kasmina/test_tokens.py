"""Networks of tokens and of rows grow: copies, branches, hidden units; and `wrap` on any network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from esper import costs
from esper.configs import ModelConfig
from esper.configs.model import SITE_KINDS
from esper.contracts.recipe import Graft
from esper.data import DataSpec
from esper.errors import ConfigError
from esper.kasmina import MorphableModel, fold, surgery, unwrap, wrap
from esper.kasmina.copies import copy_sources, kernel_cost
from esper.kasmina.scores import score_sites, scoring_macs
from esper.models import build_host, checkpoint_blocks

VIT = ModelConfig(name="vit", patch_size=4, width=12, depth=2, heads=3, mlp_ratio=2.0, target_layers=["encoder.layers"])
SPEC = DataSpec(inputs=(3, 8, 8), num_outputs=5)


class Masked(nn.Module):
    """A block that needs a mask and a keyword, and returns a tuple, as those of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.inner = nn.Linear(8, 16)
        self.out = nn.Linear(16, 8)

    def forward(self, x: Tensor, mask: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
        attended, weights = self.attention(x, x, x, attn_mask=mask)
        x = x + scale * attended
        return x + self.out(torch.tanh(self.inner(x))), weights


class Decoder(nn.Module):
    """A causal network of ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.h = nn.ModuleList(Masked() for _ in range(2))
        self.head = nn.Linear(8, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x, size = self.embedding(ids), ids.shape[1]
        mask = torch.ones(size, size, dtype=torch.bool).triu(1)
        for block in self.h:
            x, _ = block(x, mask, scale=0.5)
        return self.head(x)  # type: ignore[no-any-return]


class Counted(Decoder):
    """The same, but it runs a fixed number of its blocks."""

    def forward(self, ids: Tensor) -> Tensor:
        x, size = self.embedding(ids), ids.shape[1]
        mask = torch.ones(size, size, dtype=torch.bool).triu(1)
        for i in range(2):
            x, _ = self.h[i](x, mask, scale=0.5)
        return self.head(x)  # type: ignore[no-any-return]


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(inplace=True), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 1))


def vit() -> nn.Module:
    host = build_host(VIT, SPEC)
    nn.init.normal_(host.get_parameter("heads.head.weight"))  # torchvision's head begins as 0
    return host


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], torch.dtype | None]] = {
    "vit": (vit, (3, 8, 8), None),
    "decoder": (Decoder, (7,), torch.int64),
    "counted": (Counted, (7,), torch.int64),
    "encoder": (encoder, (5, 4), None),
    "mlp": (mlp, (6,), None),
}


def model_of(name: str) -> tuple[MorphableModel, Tensor]:
    """A network with all its sites, and a batch."""
    build, shape, dtype = NETWORKS[name]
    torch.manual_seed(0)
    model = wrap(build(), ["auto"], 99, input_shape=shape, input_dtype=dtype, site_kinds=SITE_KINDS).eval()
    x = torch.randint(0, 11, (6, *shape)) if dtype is not None else torch.randn(6, *shape)
    return model, x


def keep(model: MorphableModel, site: str, blueprint: str, x: Tensor, *, number: int = 1) -> Graft:
    slot = model.slot(site)
    graft = Graft(
        graft_id=number,
        site=site,
        blueprint_id=blueprint,
        init_seed=number,
        init_gain=0.5,
        born_step=3,
        sources=copy_sources(model, slot, "stack") if blueprint == "copy" else (),
        copy_init="trained" if blueprint == "copy" else None,
    )
    surgery.germinate(model, graft, images=x, epoch=1)
    surgery.begin_blending(slot, step=3, epoch=1)
    surgery.set_alpha(slot, step=3, blending_steps=0)
    surgery.hold(slot, epoch=1)
    surgery.fossilize(slot, epoch=1)
    return graft


LAST = {
    "vit": "encoder.layers.encoder_layer_1", "decoder": "h.1", "counted": "h.1", "encoder": "1.layers.1",
}  # fmt: skip


@pytest.mark.parametrize("name", LAST)
def test_a_stacked_transformer_runs_its_chain_twice_with_all_that_the_blocks_are_given(name: str) -> None:
    model, x = model_of(name)
    expected: nn.Module = copy.deepcopy(model.host)
    stage = expected.get_submodule(LAST[name].rpartition(".")[0])
    chain = [*stage.children(), *copy.deepcopy(list(stage.children()))]
    stacked = nn.Sequential(*chain) if name == "vit" else nn.ModuleList(chain)
    if name == "counted":  # its loop does not run what is set behind its blocks, a decoder's does
        expected = Decoder()
        expected.load_state_dict(model.host.state_dict())
    expected.set_submodule(LAST[name].rpartition(".")[0], stacked)
    graft = keep(model, f"{LAST[name]}:after", "copy", x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected.eval()(x))
    added = kernel_cost(model, graft)
    assert added.num_parameters == sum(p.numel() for p in stage.parameters())
    assert added.num_macs > 0


@pytest.mark.parametrize("name", LAST)
def test_copies_of_transformer_blocks_are_folded_into_their_chain_where_the_host_runs_it(name: str) -> None:
    model, x = model_of(name)
    keep(model, f"{LAST[name]}:after", "copy", x)
    folded, plain = fold(model), unwrap(model)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x))
        torch.testing.assert_close(plain(x), model(x))
    depth = len(list(folded.get_submodule(LAST[name].rpartition(".")[0]).children()))
    assert depth == (2 if name == "counted" else 4)
    if name == "vit":
        grown = build_host(ModelConfig(**{**vars(VIT), "depth": 4}), SPEC)
        grown.load_state_dict(folded.state_dict())  # torchvision's names


@pytest.mark.parametrize("name", NETWORKS)
def test_every_blueprint_grows_in_networks_of_tokens_and_rows(name: str) -> None:
    from esper import urza

    _, x = model_of(name)
    grown = set()
    for site in [slot.site for slot in model_of(name)[0].all_slots()][:4]:
        for blueprint in urza.CATALOGUE.values():
            if blueprint.blueprint_id != "copy" and blueprint.fits(site.kind, site.in_shape, site.out_shape):
                model, _ = model_of(name)
                with torch.no_grad():
                    before = model(x)
                    keep(model, site.name, blueprint.blueprint_id, x)
                    assert not torch.equal(model(x), before)
                    torch.testing.assert_close(fold(model)(x), model(x))
                grown.add(blueprint.blueprint_id)
    assert {"mlp", "widen", "layer_scale"} <= grown


@pytest.mark.parametrize(("name", "first"), [("decoder", "h.0.inner"), ("vit", "encoder.layers.encoder_layer_0.mlp.0")])
def test_wider_hidden_layers_are_folded_into_the_mlp(name: str, first: str) -> None:
    model, x = model_of(name)
    site = next(slot.site for slot in model.all_slots() if slot.site.kind == "width")
    assert (site.start, site.activation) == (first, {"decoder": "tanh", "vit": "gelu"}[name])
    names = set(model.host.state_dict())
    keep(model, site.name, "widen", x)
    folded = fold(model)
    assert set(folded.state_dict()) == names
    before = model.host.get_parameter(f"{first}.weight")
    assert len(folded.get_parameter(f"{first}.weight")) == len(before) + model.slot(site.name).k1.fc1.out_features  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("order", [(0, 2), (2, 0)])
def test_neighbouring_hidden_layers_are_both_folded(order: tuple[int, int]) -> None:
    host = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(4, 6)
    model = wrap(host, ["auto"], input_shape=(6,), site_kinds=["width"])
    for number in order:
        keep(model, f"{number}:width", "widen", x)
    with torch.no_grad():
        torch.testing.assert_close(fold(model)(x), model.eval()(x))


def test_a_causal_network_stays_causal_whatever_grows() -> None:
    model, ids = model_of("decoder")
    assert all(slot.site.is_causal for slot in model.all_slots() if slot.site.kind != "width")
    keep(model, "h.0:after", "self_attention", ids)
    later = torch.cat([ids[:, :4], (ids[:, 4:] + 1) % 11], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[:, :4], model(later)[:, :4])
    assert not any(slot.site.is_causal for slot in model_of("vit")[0].all_slots())


@pytest.mark.parametrize("name", ["vit", "mlp"])
def test_scores_take_positions_as_samples_and_leave_the_network_alone(name: str) -> None:
    model, x = model_of(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores = score_sites(model, [(x, torch.zeros(len(x), dtype=torch.int64))])
    assert set(scores) == {slot.site.name for slot in model.all_slots()}
    assert all(score.activation_variance > 0 for score in scores.values())
    assert all(score.narrowest_width for score in scores.values())
    assert scoring_macs(model) > 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_attention_and_linear_layers_are_counted_for_every_token_in_every_implementation() -> None:
    tokens, width, hidden = 5, 8, 16
    by_hand = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True)  # fused in eval mode
    assert costs.count(layer, (tokens, width)).num_macs == by_hand
    assert torch.backends.mha.get_fastpath_enabled()
    model, _ = model_of("encoder")
    assert {slot.site.block_cost.num_macs for slot in model.all_slots() if slot.site.kind == "after"} == {by_hand}
    assert (
        costs.count(Decoder(), (7,), dtype=torch.int64).num_macs
        == 2 * (7 * (4 * 64 + 2 * 8 * 16) + 2 * 49 * 8) + 7 * 8 * 11
    )


def test_checkpointed_blocks_of_tokens_have_the_same_gradients() -> None:
    gradients = []
    for recomputes in (False, True):
        model, ids = model_of("decoder")
        if recomputes:
            checkpoint_blocks(model.host.get_submodule("h").children())
        keep(model, "h.1:after", "copy", ids)
        model.train()(ids).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(*gradients, strict=True))


class Repeated(nn.Module):
    """Blocks that run in another way than a chain's."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.blocks = nn.ModuleList(Masked() for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        mask = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)
        for block in self.blocks:
            if self.way == "twice":
                x, _ = block(x, mask, scale=0.5)
            x, _ = block(x=x, mask=mask, scale=0.5) if self.way == "keywords" else block(x, mask, scale=0.5)
        return {"logits": x} if self.way == "mapping" else x


class Cache:
    """Keys that blocks have seen, by their number, as in transformers."""

    def __init__(self) -> None:
        self.keys = [torch.zeros(1, 0, 8)] * 2

    def get_seq_length(self) -> int:
        return self.keys[0].shape[1]

    def update(self, keys: Tensor, layer: int) -> Tensor:
        self.keys[layer] = torch.cat([self.keys[layer].expand(len(keys), -1, -1), keys], dim=1)
        return self.keys[layer]


class CachingBlock(nn.Module):
    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer, self.linear = layer, nn.Linear(8, 8)

    def forward(self, x: Tensor, *, past: Cache) -> Tensor:
        return x + self.linear(past.update(x, self.layer)).mean(1, keepdim=True)


class Caching(nn.Module):
    """A copy of a block, with the same number, would read the keys of its source."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CachingBlock(layer) for layer in range(2))

    def forward(self, x: Tensor) -> Tensor:
        past = Cache()
        for block in self.blocks:
            x = block(x, past=past)
        return x


class Padded(nn.Module):
    """A transformer of ids, of which 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8, padding_idx=0)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        ids = x.long().clamp(0, 4)
        return self.head(self.encoder(self.embedding(ids), src_key_padding_mask=ids == 0)[:, 0])  # type: ignore[no-any-return]


class Categories(nn.Module):
    """A network of rows, the first column of which is one of two categories."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, 8)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.embedding(x[:, 0].long()) + x[:, 1:])  # type: ignore[no-any-return]


def compiled_in_place() -> nn.Module:
    network = mlp()
    network.compile(backend="eager")
    return network


def compiled_block() -> nn.Module:
    network = mlp()
    network[0] = torch.compile(network[0], backend="eager")
    return network


def torchvision_model(name: str) -> Callable[[], nn.Module]:
    options = {"init_weights": False} if name == "googlenet" else {}  # else it takes seconds
    return lambda: torchvision.models.get_model(name, weights=None, **options)


ZOO: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], list[str], str | None]] = [
    ("convnext_tiny", torchvision_model("convnext_tiny"), (3, 32, 32), ["auto"], None),
    ("mobilenet_v3_small", torchvision_model("mobilenet_v3_small"), (3, 64, 64), ["auto"], None),
    ("googlenet", torchvision_model("googlenet"), (3, 64, 64), ["auto"], None),
    ("swin_t", torchvision_model("swin_t"), (3, 64, 64), ["auto"], "channels last"),
    (
        "densenet121's layers",
        torchvision_model("densenet121"),
        (3, 32, 32),
        ["features.denseblock1.denselayer1"],
        "one tensor",
    ),
    ("googlenet's head", torchvision_model("googlenet"), (3, 64, 64), ["aux1"], "does not run in a forward pass"),
    (
        "sequence first",
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2),
        (5, 1, 8),
        ["auto"],
        "fails",
    ),
    ("a layer", lambda: nn.Linear(3, 4), (3,), ["auto"], "layout of this network is not known"),
    ("other input", mlp, (7,), ["auto"], r"fails on an input of shape \(7,\) and float32"),
    ("volumes", lambda: nn.Sequential(nn.Conv3d(2, 2, 1), nn.ReLU()), (2, 4, 4, 4), ["0"], None),
    ("sequences", lambda: nn.Sequential(nn.Conv1d(2, 2, 1)), (2, 4), ["0"], "channels first"),
    ("a recurrent layer", lambda: nn.Sequential(nn.LSTM(4, 8, batch_first=True)), (5, 4), ["0"], None),
    ("a scalar", lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), (4,), ["1"], "first dimension"),
    ("blocks that run twice", lambda: Repeated("twice"), (5, 8), ["auto"], "more than once"),
    ("keywords alone", lambda: Repeated("keywords"), (5, 8), ["auto"], "all its arguments have keywords"),
    ("a mapping", lambda: Repeated("mapping"), (5, 8), ["auto"], None),
    ("nothing to train", lambda: nn.Sequential(nn.ReLU()), (5,), ["auto"], "layout of this network is not known"),
    ("a cache", Caching, (5, 8), ["auto"], "'blocks.0' is given a Cache of keys and values; .* use_cache=False"),
    ("compiled", lambda: torch.compile(mlp(), backend="eager"), (6,), ["auto"], "the network is compiled, so that"),
    ("compiled in place", compiled_in_place, (6,), ["auto"], "the network is compiled, so that"),
    ("a compiled block", compiled_block, (6,), ["auto"], "model: 0 is compiled, so that"),
    ("TorchScript", lambda: torch.jit.script(mlp()), (6,), ["auto"], "the network is TorchScript, so that"),
    ("ids padded at the end", Padded, (6,), ["auto"], None),
    ("two categories", Categories, (9,), ["auto"], None),
]


@pytest.mark.parametrize(("build", "shape", "targets", "problem"), [case[1:] for case in ZOO], ids=[c[0] for c in ZOO])
@pytest.mark.filterwarnings("ignore")
def test_wrap_gives_sites_or_one_clear_line(
    build: Callable[[], nn.Module], shape: tuple[int, ...], targets: list[str], problem: str | None
) -> None:
    if problem is None:
        assert wrap(build(), targets, 99, input_shape=shape, site_kinds=SITE_KINDS).all_slots()
        return
    with pytest.raises(ConfigError, match=problem) as raised:
        wrap(build(), targets, 99, input_shape=shape, site_kinds=SITE_KINDS)
    assert "\n" not in str(raised.value)


def test_a_network_whose_output_is_no_tensor_says_so_when_it_runs() -> None:
    model = wrap(Repeated("mapping"), ["auto"], 9, input_shape=(5, 8))
    with pytest.raises(ConfigError, match="returns a dict, but training needs one tensor"):
        model(torch.zeros(2, 5, 8))
