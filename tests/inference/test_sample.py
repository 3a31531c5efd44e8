from __future__ import annotations

from pathlib import Path

import pytest
import torch

from esper.cli import main
from esper.data.interface import Interface
from esper.data.tokenizer import ByteTokenizer
from esper.inference import Network
from esper.inference.sample import continuation
from esper.models.gpt import GPT

SIZES = {"vocab_size": 256, "context": 8, "width": 16, "heads": 2, "mlp_widths": [32, 32], "positions": "learned"}


def model_of(network: GPT) -> Network:
    interface = Interface(task="language_model", inputs=(8,), values="int64", outputs=256)
    return Network(network, interface, channels_last=False, tokenizer=ByteTokenizer())


def counting_model(step: int = 1) -> Network:
    """A model whose next byte is always the last one plus `step`, by its weights."""
    network = GPT(**(SIZES | {"width": 256, "heads": 1, "mlp_widths": []}))  # type: ignore[arg-type]
    with torch.no_grad():
        network.embedding.weight.copy_(torch.eye(256))
        assert network.positions is not None
        network.positions.weight.zero_()
        network.head.weight.copy_(torch.eye(256).roll(step, 0))
    return model_of(network)


def written(model: Network, prompt: str = "a", **changes: object) -> str:
    settings = {"num_tokens": 12, "temperature": 0.0, "top_k": None, "rng_seed": 0} | changes
    return continuation(model, prompt, **settings)  # type: ignore[arg-type]


def test_the_likeliest_token_follows_also_beyond_the_context() -> None:
    assert written(counting_model()) == "bcdefghijklm"


def test_a_text_ends_with_its_document() -> None:
    assert written(counting_model(step=-1), "\x05") == "\x04\x03\x02\x01"


def test_bytes_of_a_prompt_that_are_no_utf8_are_tokens() -> None:
    assert written(counting_model(step=65), "\udcc1", num_tokens=2) == "\x02C"  # 0xc1 + 65 = 256 + 2


def test_an_empty_prompt_begins_a_document() -> None:
    assert written(counting_model(step=65), "", num_tokens=1) == "A"


def test_draws_depend_on_the_seed_and_top_k_limits_them() -> None:
    model = model_of(GPT(**SIZES))  # type: ignore[arg-type]
    texts = [written(model, temperature=5.0, rng_seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert written(model, temperature=5.0, top_k=1) == written(model)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "is neither the folder of a run (it has no config.yaml) nor what esper export wrote"),
        ("older", "was exported by an older version of Esper, without how inputs are prepared: export the run again"),
        ("damaged", "is damaged: "),
        ("temperature", "-1: allowed is at least 0"),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, message: str
) -> None:
    if kind == "older":
        (tmp_path / "model.json").write_text('{"schema": 1, "host": "gpt", "not_folded": []}')
    if kind == "damaged":
        (tmp_path / "model.json").write_text('{"schema": 2, "model": {}}')
    options = ["--temperature", "-1"] if kind == "temperature" else []
    with pytest.raises(SystemExit):
        main(["sample", str(tmp_path), *options])
    assert message in capsys.readouterr().err.splitlines()[-1]
