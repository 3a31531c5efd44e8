"""Too little memory: growth is undone and refused, a batch is split. Every error is the allocator's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

from esper import fit, urza
from esper.configs import TolariaConfig
from esper.errors import MemoryLimitError
from esper.report import run_page
from esper.tolaria import TolariaTrainer, optim
from esper.tolaria.checkpoints.contents import snapshot
from esper.tolaria.checkpoints.files import find_checkpoints
from esper.urza import catalogue
from esper.urza.kernel import Kernel, Shape, blueprint
from esper.urza.normalization import LayerScale
from tests.conftest import journal_of, tiny_config, use
from tests.tolaria.checkpoints.test_resume import assert_same, train
from tests.tolaria.growth.test_stack import stacking
from tests.tolaria.processes import TINY, ends, start_step

BATCH, SAMPLE = 32, 16


def exhaust() -> None:
    """Ask for 4 PiB."""
    torch.empty(1 << 50)


class Hungry(LayerScale):
    """Runs out of memory on batches of one size."""

    def __init__(self, channels: int, batch_size: int | None) -> None:
        super().__init__(channels)
        self.batch_size = batch_size
        if batch_size is None:
            exhaust()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == self.batch_size and not x.is_meta:
            exhaust()
        return super().forward(x)


@pytest.fixture
def hungry(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Register the blueprint `hungry` in this test's catalogue, for a batch size; None: it cannot even be built."""

    def register(batch_size: int | None) -> None:
        def hungry(in_shape: Shape, out_shape: Shape) -> Kernel:
            """Runs out of memory."""
            return Hungry(in_shape[0], batch_size)

        fields: dict[str, Any] = {"category": "normalization", "complexity": 1, "keeps_shape": True, "source": "here"}
        known = {**urza.CATALOGUE, "hungry": blueprint(kinds={"after"}, **fields)(hungry)}
        for module in (urza, catalogue):
            monkeypatch.setattr(module, "CATALOGUE", MappingProxyType(known))

    return register


def growing(**changes: Any) -> TolariaConfig:
    """Due to grow after the first and after the second of three epochs, at sites of which two take the blueprint."""
    settings = {"schedule_at": [0.3, 0.6], "growth_until": 0.7, "adaptation_cooldown": 1, "blueprint": "hungry"}
    return tiny_config(**{f"morphogenetic__{key}": value for key, value in settings.items()} | changes)


def refused(growth: dict[str, Any]) -> list[tuple[str, str]]:
    return [(site, blueprint_id) for site, blueprint_id, _ in growth["refusals"]["reasons"]]


SITES = [("layer1.0:after", "hungry"), ("layer2.0:after", "hungry")]


@pytest.mark.parametrize("where", ["build", "check", "optimizer"])
def test_growth_that_does_not_fit_is_undone_and_not_tried_there_again(
    where: str, hungry: Any, monkeypatch: pytest.MonkeyPatch, run_dir: Path, tmp_path: Path
) -> None:
    without, _ = train(tiny_config(morphogenetic__policy="never"), tmp_path / "without")
    hungry({"build": None, "check": SAMPLE, "optimizer": 0}[where])
    if where == "optimizer":
        exhaust_in_state_of_newborns(monkeypatch)
    train(growing(), run_dir, stop_at=8)
    tensors, growth = train(growing(), run_dir)
    assert_same(tensors, without)
    assert refused(growth) == SITES  # one each time
    surgery = journal_of(run_dir, "surgery")
    assert [(event["site"], event["committed"]) for event in surgery] == [(site, False) for site, _ in SITES]
    assert all("out of memory: " in event["error"] and "not tried again" in event["error"] for event in surgery)
    assert [event["applied"] for event in journal_of(run_dir, "decision") if event["decision"]["should_adapt"]] == [
        False
    ] * 2
    assert journal_of(run_dir, "growth_undone") == []


def exhaust_in_state_of_newborns(monkeypatch: pytest.MonkeyPatch, *, after: int = 0) -> None:
    """Run out of memory in making the state of newborn parameters, after some groups of them."""
    make_state, num_made = optim._make_state, 0

    def make(optimizer: Any, config: Any, group: Any) -> None:
        nonlocal num_made
        make_state(optimizer, config, group)
        is_newborn = group["born_step"] is not None
        num_made += is_newborn
        if is_newborn and num_made > after:
            exhaust()

    monkeypatch.setattr(optim, "_make_state", make)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param(
            {"morphogenetic__incubation": "shadow", "morphogenetic__incubation_steps": 3}, marks=pytest.mark.long
        ),
    ],
)
def test_growth_whose_first_step_does_not_fit_is_undone(
    settings: dict[str, Any], hungry: Any, run_dir: Path, tmp_path: Path
) -> None:
    without, _ = train(tiny_config(morphogenetic__policy="never"), tmp_path / "without")
    hungry(BATCH)
    tensors, growth = train(growing(**settings), run_dir)
    assert_same(tensors, without)
    assert refused(growth) == SITES
    undone = journal_of(run_dir, "growth_undone")
    assert [(event["step"], event["fault_step"]) for event in undone] == [(6, 6), (12, 12)]
    assert all("out of memory: " in event["reason"] for event in undone)


@pytest.mark.long
def test_forks_that_do_not_fit_are_refused_too(hungry: Any, run_dir: Path, tmp_path: Path) -> None:
    without, _ = train(tiny_config(morphogenetic__policy="never"), tmp_path / "without")
    hungry(BATCH)
    config = growing(
        morphogenetic__policy="heuristic", morphogenetic__fork_steps=2, morphogenetic__health_threshold=1.0,
        morphogenetic__growth_until=0.4,
    )  # fmt: skip
    tensors, growth = train(config, run_dir)
    assert_same(tensors, without)
    assert sorted(refused(growth)) == SITES


def test_a_doubling_of_which_half_does_not_fit_is_undone_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, run_dir: Path, tmp_path: Path
) -> None:
    without, _ = train(stacking(morphogenetic__policy="never"), tmp_path / "without")
    exhaust_in_state_of_newborns(monkeypatch, after=2)  # weights and norms of the first stage's copies
    tensors, growth = train(stacking(), run_dir)
    assert_same(tensors, without)
    (undone,) = journal_of(run_dir, "growth_undone")
    assert sorted(site for site, _ in undone["modules"]) == ["layer1.1:after", "layer2.1:after"]
    assert len(refused(growth)) == 2


# --- ordinary steps ---------------------------------------------------------------------------------------------------


def limit(trainer: TolariaTrainer, *, largest: int, from_step: int = 0) -> None:
    """Let the network run out of memory in training on more images than this, from a step on."""

    def check(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        is_step = module.training and torch.is_grad_enabled() and trainer.training_state.global_step >= from_step
        if is_step and len(args[0]) > largest:
            exhaust()

    trainer.run.model.host.register_forward_pre_hook(check)


def limited(config: TolariaConfig, run_dir: Path, *, largest: int, from_step: int = 0) -> dict[str, Tensor]:
    """Train to the end, and return every tensor."""

    async def body(trainer: TolariaTrainer) -> dict[str, Tensor]:
        limit(trainer, largest=largest, from_step=from_step)
        await trainer.train()
        saved = snapshot(trainer.run)
        return {name: value.clone() for name, value in {**saved.model, **saved.optimizer}.items()}

    tensors: dict[str, Tensor] = use(config, run_dir, body)
    return tensors


@pytest.mark.parametrize("from_step", [0, 10])
def test_a_step_that_does_not_fit_is_done_in_halves_from_then_on_also_after_a_resume(
    from_step: int, run_dir: Path, tmp_path: Path
) -> None:
    config = tiny_config()
    whole = limited(config, tmp_path / "whole", largest=SAMPLE, from_step=from_step)
    (notice,) = journal_of(tmp_path / "whole", "notice")
    assert (notice["step"], notice["level"]) == (from_step, "WARNING")
    assert "each batch of 32 is trained in two halves whose gradients are added up; batch norm" in notice["message"]
    assert journal_of(tmp_path / "whole", "growth_undone") == []  # the module that grew after step 6 is not to blame

    async def stop(trainer: TolariaTrainer) -> None:
        limit(trainer, largest=SAMPLE, from_step=from_step)
        trainer.run.journal.subscribe(lambda event: trainer.request_stop("test") if event.step == 14 else None)
        await trainer.train()
        assert trainer.training_state.global_step == 14

    use(config, run_dir, stop)
    resumed, _ = train(config, run_dir)
    assert_same(resumed, whole)


@pytest.mark.parametrize(("batch_size", "accumulate", "splits"), [(32, 1, True), (33, 3, False), (33, 2, True)])
def test_parts_give_the_update_of_the_whole_batch_where_no_batch_norm_is(
    batch_size: int, accumulate: int, splits: bool, run_dir: Path, tmp_path: Path
) -> None:
    async def body(trainer: TolariaTrainer, num_parts: int) -> tuple[list[Tensor], Tensor]:
        run, seen = trainer.run, list[int]()
        run.model.eval()  # batch norm does not normalise by the batch
        run.model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
        if num_parts > accumulate:
            run.step.split()
        for index in range(3):
            run.optimizer.param_groups[0]["lr"] = run.optimizer.param_groups[1]["lr"] = 0.5
            run.step.forward_backward_update(epoch=0, index=index, step=index)
        assert len(seen) == 3 * num_parts
        assert sum(seen) == 3 * batch_size
        return [p.detach().clone() for p in run.model.parameters()], run.step.sums.epoch.clone()

    num_parts = 2 * accumulate if splits else accumulate
    config = tiny_config(dataset__batch_size=batch_size, optimization__gradient_clip_norm=0.4)
    parts = tiny_config(
        dataset__batch_size=batch_size, optimization__gradient_clip_norm=0.4, optimization__accumulate=accumulate
    )
    whole, sums = use(config, run_dir, lambda trainer: body(trainer, 1))
    halves, same = use(parts, tmp_path / "parts", lambda trainer: body(trainer, num_parts))
    torch.testing.assert_close(halves, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(same, sums, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("epochs", [0, 1])
def test_what_does_not_fit_in_halves_either_ends_with_one_line_and_keeps_the_checkpoints(
    epochs: int, run_dir: Path
) -> None:
    with pytest.raises(MemoryLimitError) as caught:
        limited(tiny_config(), run_dir, largest=SAMPLE - 1, from_step=6 * epochs + 4)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("out of memory (")
    assert (
        "what needs less: dataset.batch_size=16, optimization.accumulate=2, model.gradient_checkpointing=true" in line
    )
    assert [path.name for path in find_checkpoints(run_dir / "checkpoints")] == ["step-00000006"] * epochs


LIMIT_OF_RANK_1 = """
import os, torch
from esper.kasmina import MorphableModel

def check(module, args):
    is_step = isinstance(module, MorphableModel) and module.training and torch.is_grad_enabled()
    if is_step and os.environ["SLURM_PROCID"] == "1" and len(args[0]) > LARGEST:
        torch.empty(1 << 50)

torch.nn.modules.module.register_module_forward_pre_hook(check)
"""


@pytest.mark.long
@pytest.mark.parametrize(("largest", "codes"), [(9, [0, 0]), (8, [1, 1])])
def test_all_ranks_split_the_batch_that_one_of_them_cannot_hold(largest: int, codes: list[int], tmp_path: Path) -> None:
    settings = (*TINY, "optimization.max_epochs=1", "optimization.warmup_epochs=0.5")
    first = LIMIT_OF_RANK_1.replace("LARGEST", str(largest))
    ranks = start_step(*[(*settings, f"hydra.run.dir={tmp_path / 'ranks'}")] * 2, first=first)
    returned, stderr = ends(ranks)  # of 33 images, rank 1 has 17
    assert returned == codes, stderr
    (notice,) = [e for e in journal_of(tmp_path / "ranks", "notice") if "two halves" in e["message"]]
    assert notice["step"] == 0
    if codes == [0, 0]:
        fit(*settings, run_dir=tmp_path / "alone")
        mine, theirs = ([e["loss"] for e in journal_of(tmp_path / name, "step")] for name in ("alone", "ranks"))
        assert theirs == pytest.approx(mine, abs=1e-5)
    else:
        assert stderr.count("\n") == 1
        assert "what needs less: dataset.batch_size=16" in stderr


def test_a_network_that_does_not_fit_at_all_says_so_in_one_line(run_dir: Path) -> None:
    trainer = TolariaTrainer(tiny_config(model__widths=[1 << 20, 1 << 20]), run_dir=run_dir)
    with pytest.raises(MemoryLimitError, match=r"^out of memory \(.*\); what needs less: .*"):
        asyncio.run(trainer.initialize())


def test_memory_that_runs_out_after_training_is_one_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_page, "write", lambda _: exhaust())
    with pytest.raises(MemoryLimitError, match=r"out of memory \(.+; checkpoints are kept"):
        fit("experiment=debug", "optimization.max_epochs=1", run_dir=tmp_path / "run")
    assert find_checkpoints(tmp_path / "run" / "checkpoints")
