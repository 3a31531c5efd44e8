from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from esper.cli import main
from esper.data.tokenizer import ByteTokenizer
from esper.models.gpt import GPT
from esper.tolaria.sample import LanguageModel, continuation, load_language_model

SIZES = {"vocab_size": 256, "context": 8, "width": 16, "heads": 2, "mlp_widths": [32, 32], "positions": "learned"}
CPU = torch.device("cpu")


def counting_model(step: int = 1) -> LanguageModel:
    """A model whose next byte is always the last one plus `step`, by its weights."""
    network = GPT(**(SIZES | {"width": 256, "heads": 1, "mlp_widths": []}))  # type: ignore[arg-type]
    with torch.no_grad():
        network.embedding.weight.copy_(torch.eye(256))
        assert network.positions is not None
        network.positions.weight.zero_()
        network.head.weight.copy_(torch.eye(256).roll(step, 0))
    return LanguageModel(network=network, tokenizer=ByteTokenizer(), context=8)


def written(model: LanguageModel, prompt: str = "a", **changes: object) -> str:
    settings = {"num_tokens": 12, "temperature": 0.0, "top_k": None, "rng_seed": 0, "device": CPU} | changes
    return continuation(model, prompt, **settings)  # type: ignore[arg-type]


def test_the_likeliest_token_follows_also_beyond_the_context() -> None:
    assert written(counting_model()) == "bcdefghijklm"


def test_a_text_ends_with_its_document() -> None:
    assert written(counting_model(step=-1), "\x05") == "\x04\x03\x02\x01"


def test_an_empty_prompt_begins_a_document() -> None:
    assert written(counting_model(step=65), "", num_tokens=1) == "A"


def test_draws_depend_on_the_seed_and_top_k_limits_them() -> None:
    model = LanguageModel(network=GPT(**SIZES), tokenizer=ByteTokenizer(), context=8)  # type: ignore[arg-type]
    texts = [written(model, temperature=5.0, rng_seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert written(model, temperature=5.0, top_k=1) == written(model)


def test_an_export_is_loaded_and_sampled_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = counting_model()
    save_file(model.network.state_dict(), tmp_path / "model.safetensors")
    sizes = SIZES | {"width": 256, "heads": 1, "mlp_widths": []}
    (tmp_path / "model.json").write_text(json.dumps({"host": "gpt", **sizes, "not_folded": []}))
    assert written(load_language_model(tmp_path)) == "bcdefghijklm"
    with pytest.raises(SystemExit, match="0"):
        main(["sample", str(tmp_path), "--prompt", "a", "--temperature", "0", "--tokens", "3", "--device", "cpu"])
    assert capsys.readouterr().out == "abcd\n"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "is neither a run folder (it has no config.yaml) nor what esper export wrote"),
        ("images", "is no export of model=gpt"),
        ("damaged", "is damaged: "),
        ("temperature", "-1: allowed is at least 0"),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, message: str
) -> None:
    if kind == "images":
        (tmp_path / "model.json").write_text(json.dumps({"host": "resnet18", "not_folded": []}))
    if kind == "damaged":
        (tmp_path / "model.json").write_text(json.dumps({"host": "gpt", **SIZES, "not_folded": []}))
        (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    options = ["--temperature", "-1"] if kind == "temperature" else []
    with pytest.raises(SystemExit):
        main(["sample", str(tmp_path), *options])
    assert message in capsys.readouterr().err.splitlines()[-1]
