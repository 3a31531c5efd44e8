"""Optimizer, learning-rate schedule, and length of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esper.configs.schema import setting

__all__ = ["OPTIMIZERS", "OptimizationConfig", "OptimizerInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerInfo:
    """What is known about an optimizer of `torch.optim` before it is built.

    Attributes:
        class_name: its class.
        options: what `optimization.optimizer_options` may set, each with torch's default.
        is_capturable: whether its step can be captured in a CUDA graph.
        is_fused: whether its fused implementation is used on CUDA, which scales fp16 gradients without reading them.
    """

    class_name: str
    options: dict[str, Any]
    is_capturable: bool = True
    is_fused: bool = False


_ADAM = {"betas": [0.9, 0.999], "eps": 1e-8}
OPTIMIZERS = {
    "adadelta": OptimizerInfo(class_name="Adadelta", options={"rho": 0.9, "eps": 1e-6}),
    "adafactor": OptimizerInfo(class_name="Adafactor", options={"beta2_decay": -0.8, "d": 1.0}, is_capturable=False),
    "adagrad": OptimizerInfo(
        class_name="Adagrad", options={"initial_accumulator_value": 0.0, "eps": 1e-10}, is_capturable=False
    ),
    "adam": OptimizerInfo(
        class_name="Adam", options={**_ADAM, "amsgrad": False, "decoupled_weight_decay": False}, is_fused=True
    ),
    "adamax": OptimizerInfo(class_name="Adamax", options=_ADAM),
    "adamw": OptimizerInfo(class_name="AdamW", options={**_ADAM, "amsgrad": False}, is_fused=True),
    "muon": OptimizerInfo(  # with AdamW, which gets betas and eps
        class_name="Muon",
        options={**_ADAM, "momentum": 0.95, "nesterov": True, "ns_steps": 5, "adjust_lr_fn": "match_rms_adamw"},
    ),
    "nadam": OptimizerInfo(
        class_name="NAdam", options={**_ADAM, "momentum_decay": 0.004, "decoupled_weight_decay": False}
    ),
    "radam": OptimizerInfo(class_name="RAdam", options={**_ADAM, "decoupled_weight_decay": False}),
    "rmsprop": OptimizerInfo(
        class_name="RMSprop", options={"alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "centered": False}
    ),
    "sgd": OptimizerInfo(class_name="SGD", options={}, is_fused=True),
}
"""Those of torch.optim that fit: LBFGS needs several passes per step, SparseAdam sparse gradients; Rprop and ASGD set
their own learning rates, and the average of the latter is what `optimization.ema_decay` is for."""


@dataclass(kw_only=True)
class OptimizationConfig:
    """Group `optimization`."""

    optimizer: str = setting(
        "sgd",
        "optimizer of torch.optim; muon trains matrices inside of the network, and AdamW, with the same learning rate "
        "and weight decay, everything else",
        choices=tuple(OPTIMIZERS),
    )
    optimizer_options: dict[str, Any] = setting(
        {}, "its options beside those below, by torch's names, such as {betas: [0.9, 0.95], eps: 1e-10}"
    )
    learning_rate: float = setting(0.1, "peak learning rate", above=0)
    weight_decay: float = setting(
        5e-4,
        "weight decay, not applied to norms, biases, output scales, and what a method no_weight_decay() of a module "
        "names",
        low=0,
    )
    decay_norms_and_biases: bool = setting(False, "apply the weight decay to all parameters")
    momentum: float = setting(0.9, "sgd: momentum", low=0, below=1)
    nesterov: bool = setting(True, "sgd: Nesterov momentum")

    scheduler: str = setting(
        "wsd",
        "learning rate after the warm-up: constant; cosine or linear decay to zero; wsd (warm-up, stable, decay): "
        "constant, then linear decay to zero over the last decay_fraction",
        choices=("constant", "cosine", "linear", "wsd"),
    )
    warmup_epochs: float = setting(1.0, "epochs of linear warm-up from zero", low=0)
    decay_fraction: float = setting(0.3, "wsd: fraction of training in which the learning rate decays", above=0, high=1)

    max_epochs: int = setting(100, "epochs; with morphogenetic.schedule_by=compute those of the final network", low=1)
    max_macs: float | None = setting(
        None,
        "multiply-accumulates to spend instead of max_epochs, including all that growth costs; training may end within "
        "an epoch; null: max_epochs",
        above=0,
    )
    gradient_clip_norm: float | None = setting(
        None, "maximum norm of the gradient over all parameters; null: no clipping", above=0
    )

    accumulate: int = setting(
        1,
        "gradient accumulation: parts in which each batch of dataset.batch_size goes through the network, one after "
        "the other, for one step of the optimizer; saves memory, and batch norm normalises each part by itself",
        low=1,
    )
    ema_decay: float | None = setting(
        None,
        "decay of an exponential moving average (EMA) of the weights, such as 0.999; the EMA is validated, tested and "
        "exported, but growth uses the weights themselves; removing a module restarts it; null: no EMA",
        above=0,
        below=1,
    )

    patience: int | None = setting(
        None,
        "early stopping: epochs without improvement of the validation loss, counted anew after growth; null: never",
        low=1,
    )
    min_delta: float = setting(1e-4, "smallest drop of the validation loss that counts as an improvement", low=0)
