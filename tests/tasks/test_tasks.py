"""Losses and metrics of the tasks, against formulas on few examples."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, r2_score, top_k_accuracy_score
from torch import Tensor

from esper.configs import TaskConfig
from esper.configs.compose import conf_folder
from esper.configs.task import TASKS
from esper.contracts.metrics import ACCURACY
from esper.data import DataSpec
from esper.errors import ConfigError
from esper.tasks import Task, build_task
from esper.tasks.task import as_figures, mean_values, sum_values

CPU = torch.device("cpu")


def make(name: str, num_outputs: int, *, token_bytes: tuple[int, ...] = (), **settings: object) -> Task:
    spec = DataSpec(inputs=(3,), num_outputs=num_outputs, token_bytes=token_bytes)
    return build_task(TaskConfig(name=name, **settings), spec, CPU)  # type: ignore[arg-type]


def figures(task: Task, output: Tensor, target: Tensor) -> dict[str, float]:
    loss = task.losses(output, target).double().mean().item()
    return as_figures(task.metrics, loss, mean_values(task.metrics, output, target).tolist())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_group_option(name: str) -> None:
    assert (conf_folder() / "task" / f"{name}.yaml").is_file()


def test_classification_has_the_metrics_of_scikit_learn() -> None:
    logits, target = torch.randn(60, 7), torch.randint(6, (60,))  # class 6 does not occur
    measured = figures(make("classification", 7), logits, target)
    predicted = logits.argmax(1)
    assert measured["accuracy"] == (predicted == target).double().mean().item()
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(target, predicted)
    assert measured["balanced_accuracy"] == pytest.approx(expected)
    assert measured["top5"] == pytest.approx(top_k_accuracy_score(target, logits, k=5, labels=range(7)))


def test_five_classes_have_no_top_5() -> None:
    assert [metric.name for metric in make("classification", 5).metrics] == ["accuracy", "balanced_accuracy"]


def test_the_accuracy_is_that_of_runs_before_there_were_tasks() -> None:
    assert make("classification", 3).metrics[0].info == ACCURACY


def test_label_smoothing_changes_the_training_loss_only() -> None:
    logits, target = torch.randn(8, 4), torch.randint(4, (8,))
    smoothed, plain = make("classification", 4, label_smoothing=0.1), make("classification", 4)
    assert torch.equal(smoothed.losses(logits, target), F.cross_entropy(logits, target, reduction="none"))
    assert torch.equal(smoothed.objective(logits, target), F.cross_entropy(logits, target, label_smoothing=0.1))
    assert torch.equal(plain.objective(logits, target), F.cross_entropy(logits, target))


def test_class_weights_multiply_the_losses_in_training_so_that_parts_of_a_batch_add_up() -> None:
    logits, target = torch.randn(8, 3), torch.randint(3, (8,))
    task, weights = make("classification", 3, class_weights=[1.0, 2.0, 0.5]), torch.tensor([1.0, 2.0, 0.5])
    losses = F.cross_entropy(logits, target, reduction="none")
    assert task.objective(logits, target).item() == pytest.approx((weights[target] * losses).mean().item())
    halves = [task.objective(logits[part], target[part]) for part in (slice(0, 4), slice(4, 8))]
    assert task.objective(logits, target).item() == pytest.approx(sum(halves).item() / 2)  # type: ignore[union-attr]
    assert torch.equal(task.losses(logits, target), losses)


def test_mixed_targets_train_and_count_as_their_likeliest_class() -> None:
    logits, target = torch.eye(4), torch.tensor([0, 1, 2, 0])
    mixed = 0.7 * F.one_hot(target, 4).float() + 0.3 * F.one_hot(target.flip(0), 4).float()
    task = make("classification", 4)
    assert torch.equal(task.objective(logits, mixed), F.cross_entropy(logits, mixed))
    assert mean_values(task.training_metrics, logits, mixed).tolist() == [0.75]


def test_text_is_measured_in_bits_a_byte_and_by_perplexity() -> None:
    logits, target = torch.randn(2, 5, 6), torch.randint(6, (2, 5))
    bytes_of = (1, 2, 3, 4, 5, 6)
    task = make("language_model", 6, token_bytes=bytes_of)
    losses = task.losses(logits, target)
    assert losses.shape == (2, 5)
    assert losses[1, 3].item() == pytest.approx(-F.log_softmax(logits[1, 3], 0)[target[1, 3]].item())
    measured = figures(task, logits, target)
    num_bytes = sum(bytes_of[token] for token in target.flatten().tolist())
    assert measured["bits_per_byte"] == pytest.approx(losses.sum().item() / math.log(2) / num_bytes)
    assert measured["perplexity"] == pytest.approx(math.exp(losses.mean().item()))
    assert figures(make("language_model", 6), logits, target)["bits_per_byte"] == pytest.approx(
        losses.mean().item() / math.log(2)
    )


def test_text_trains_on_the_smoothed_mean_over_tokens() -> None:
    logits, target = torch.randn(2, 5, 6), torch.randint(6, (2, 5))
    task = make("language_model", 6, label_smoothing=0.2)
    expected = F.cross_entropy(logits.transpose(1, 2), target, label_smoothing=0.2)
    assert task.objective(logits, target).item() == pytest.approx(expected.item())
    assert make("language_model", 6).objective(logits, target).item() == pytest.approx(
        task.losses(logits, target).mean().item()
    )


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_regression_has_the_metrics_of_scikit_learn(num_outputs: int) -> None:
    output, target = torch.randn(20, num_outputs), 5 + torch.randn(20, num_outputs)
    measured = figures(make("regression", num_outputs), output, target)
    assert measured["mse"] == pytest.approx((output - target).square().mean().item(), rel=1e-5)
    assert measured["mae"] == pytest.approx((output - target).abs().mean().item(), rel=1e-5)
    assert measured["r2"] == pytest.approx(r2_score(target, output), rel=1e-5)


def test_a_constant_target_has_no_r2_though_sums_are_rounded() -> None:
    target = torch.full((333,), 2000.1)
    assert math.isnan(figures(make("regression", 1), target + torch.randn(333), target)["r2"])


def test_one_number_an_example_may_lack_its_dimension() -> None:
    output, target = torch.randn(20, 1), torch.randn(20)
    task = make("regression", 1)
    assert torch.equal(task.losses(output, target), (output[:, 0] - target).square())
    with pytest.raises(ConfigError, match="gives 2 numbers an example, the targets have 1"):
        task.losses(torch.randn(20, 2), target)


def test_multilabel_has_the_metrics_of_scikit_learn() -> None:
    logits, target = torch.randn(30, 4), torch.randint(2, (30, 4))
    task = make("multilabel", 4)
    measured = figures(task, logits, target)
    assert measured["f1"] == pytest.approx(f1_score(target, logits > 0, average="micro"))
    assert measured["exact_match"] == ((logits > 0) == target.bool()).all(1).double().mean().item()
    expected = F.binary_cross_entropy_with_logits(logits, target.float())
    assert task.losses(logits, target).mean().item() == pytest.approx(expected.item())


def test_multilabel_weighs_the_positives_of_a_label() -> None:
    logits, target = torch.randn(30, 2), torch.randint(2, (30, 2))
    task = make("multilabel", 2, class_weights=[1.0, 3.0])
    expected = F.binary_cross_entropy_with_logits(logits, target.float(), pos_weight=torch.tensor([1.0, 3.0]))
    assert task.objective(logits, target).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("classification", {"class_weights": [1.0, 2.0]}, "has 2 entries, but the network has 3 outputs"),
        ("multilabel", {"class_weights": [1.0, 2.0]}, "has 2 entries, but the network has 3 outputs"),
        ("multilabel", {"label_smoothing": 0.1}, "not for task=multilabel"),
        ("language_model", {"class_weights": [1.0, 1.0, 1.0]}, "tokens have no weights"),
        ("regression", {"label_smoothing": 0.1}, "has no classes"),
        ("regression", {"class_weights": [1.0, 1.0, 1.0]}, "has no classes"),
    ],
)
def test_settings_that_a_task_does_not_have_are_refused(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(name, 3, **settings)


@pytest.mark.parametrize("num_classes", [4, 101])
def test_the_test_tells_the_accuracy_of_every_class_and_of_few_classes_the_confusion_matrix(num_classes: int) -> None:
    logits, target = torch.randn(60, num_classes), torch.randint(3, (60,))
    spec = DataSpec(inputs=(3,), num_outputs=num_classes, output_names=("a", "b", "c"))
    detail = build_task(TaskConfig(), spec, CPU).detail
    assert detail is not None
    told = detail.describe(sum_values([detail], logits, target).tolist())
    predicted = logits.argmax(1)
    assert told["test_class_accuracy"]["b"] == (predicted[target == 1] == 1).double().mean().item()
    assert told["test_class_accuracy"]["3"] is None
    if num_classes == 4:
        assert told["test_confusion"] == confusion_matrix(target, predicted, labels=range(4)).tolist()
    else:
        assert "test_confusion" not in told
