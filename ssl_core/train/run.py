"""The typed settings of a run: those that decide the weights, and those of its runtime.

The recipe's schema is made from these fields; users read the `Attributes` texts there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ssl_core.errors import InputError
from ssl_core.nn.encoders import EncoderSpec
from ssl_core.task import PretextTask


def _require(ok: bool, sentence: str) -> None:
    if not ok:
        raise InputError(sentence)


@dataclass(frozen=True)
class Optim:
    """The optimizer and the learning rate.

    Attributes:
        name: sgd (with momentum), adamw, or lars (for batches of 1024 and more).
        lr: peak learning rate; see scale_lr.
        scale_lr: lr is for 256 samples: the peak is lr * batch_size / 256 (Goyal 2017). False takes lr as it is.
        weight_decay: pulls weights towards zero; never applied to biases, norms and other one-dimensional parameters.
        momentum: for sgd and lars.
        nesterov: Nesterov momentum; sgd only.
        betas: decay of adamw's running mean and running square.
        eps: added to adamw's denominator.
        trust: lars' trust coefficient (eta in You 2017).
        schedule: cosine falls from the peak to final_lr over the run; constant stays at the peak.
        warmup_epochs: epochs over which the learning rate rises linearly to its peak; may be a fraction.
        warmup_steps: the same in optimizer steps; give one of the two.
        final_lr: learning rate at the end of the cosine, as a fraction of the peak.
        clip: the gradient is scaled down to this L2 norm where it is larger; 0 does not clip.
    """

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    lr: float = 0.1
    scale_lr: bool = True
    weight_decay: float = 1e-4
    momentum: float = 0.9
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    trust: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    warmup_steps: int = 0
    final_lr: float = 0.0
    clip: float = 0.0

    def __post_init__(self) -> None:
        _require(self.name in ("sgd", "adamw", "lars"), f"optim.name is {self.name!r}; choose sgd, adamw or lars.")
        _require(
            self.schedule in ("cosine", "constant"),
            f"optim.schedule is {self.schedule!r}; choose cosine or constant.",
        )
        for name, low, high in (
            ("lr", 0.0, math.inf),
            ("weight_decay", 0.0, math.inf),
            ("momentum", 0.0, 1.0),
            ("trust", 0.0, math.inf),
            ("warmup_epochs", 0.0, math.inf),
            ("warmup_steps", 0.0, math.inf),
            ("final_lr", 0.0, 1.0),
            ("clip", 0.0, math.inf),
        ):
            value = getattr(self, name)
            _require(low <= value <= high and math.isfinite(value), _outside("optim", name, value, low, high))
        _require(self.lr > 0, "optim.lr is 0, so nothing would be learnt; set it above 0.")
        _require(
            not (self.warmup_epochs and self.warmup_steps),
            "optim.warmup_epochs and optim.warmup_steps are both given; keep one of them.",
        )
        _require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas is {self.betas!r}; give two numbers of at least 0 and below 1, such as [0.9, 0.999].",
        )
        _require(
            not (self.name == "sgd" and self.nesterov and self.momentum == 0),
            "optim.nesterov needs momentum; set optim.momentum above 0 or optim.nesterov to false.",
        )


@dataclass(frozen=True)
class Train:
    """How long to train and on which batches; all of it decides the weights.

    Attributes:
        epochs: passes over the corpus; ignored where steps is given.
        steps: optimizer steps instead of epochs.
        seconds: computing time instead of epochs or steps: as many steps as fit into so many CPU-seconds of all
            workers together (GPU-seconds on GPUs), measured by a short trial at the start.
        batch_size: samples per optimizer step over all workers and micro-batches.
        accumulate: micro-batches per optimizer step; saves memory, but a contrastive task sees one micro-batch only.
        seed: seed of initial weights, order, crops, augmentations and dropout.
        precision: bf16 computes under autocast with float32 weights; fp32 does not.
        channels_last: memory order of images and convolutions; faster on most hardware.
        compile: torch.compile of the model; off, because it is slower on CPUs and for short runs.
        ema: decay per step of the EMA of the weights, which is evaluated and saved; 0 keeps none.
        sync_bn: batch norm statistics over all workers; GPUs only.
    """

    epochs: int = 100
    steps: int | None = None
    seconds: float | None = None
    batch_size: int = 256
    accumulate: int = 1
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    ema: float = 0.0
    sync_bn: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            value = getattr(self, name)
            _require(value >= 1, f"train.{name} is {value}; it must be at least 1.")
        _require(self.steps is None or self.steps >= 1, f"train.steps is {self.steps}; it must be at least 1.")
        _require(
            self.seconds is None or 0 < self.seconds < math.inf,
            f"train.seconds is {self.seconds}; it must be above 0 and finite.",
        )
        _require(
            self.seconds is None or self.steps is None,
            "train.seconds and train.steps are both given; keep one of them, or set the other to null.",
        )
        _require(0 <= self.ema < 1, f"train.ema is {self.ema}; it must be at least 0 and below 1, such as 0.999.")
        _require(
            self.precision in ("fp32", "bf16"),
            f"train.precision is {self.precision!r}; choose fp32 or bf16.",
        )
        _require(
            self.batch_size % self.accumulate == 0,
            f"train.batch_size {self.batch_size} cannot be cut into train.accumulate {self.accumulate} equal "
            "micro-batches; change one of them.",
        )


@dataclass(frozen=True)
class Runtime:
    """Checkpoints, logging, checks and reading; none of it changes a bit of the weights.

    Attributes:
        checkpoint_every: steps between checkpoints; one more is written at the end and on SIGTERM.
        keep: how many of the newest checkpoints are kept.
        log_every: steps between points of the curves.
        check_every: steps between checks for a collapsed representation; 0 does not check.
        collapse_std: a check fails where the normalised representation's spread (1 is uniform on the sphere, 0 is
            one point) is below this.
        collapse_rank: a check fails where the centred representation's effective rank is below this.
        collapse_checks: failed checks in a row that stop the run.
        reader_threads: threads per worker that read and crop in advance.
    """

    checkpoint_every: int = 500
    keep: int = 2
    log_every: int = 10
    check_every: int = 100
    collapse_std: float = 1e-3
    collapse_rank: float = 1.05
    collapse_checks: int = 3
    reader_threads: int = 2

    def __post_init__(self) -> None:
        for name, low in (
            ("checkpoint_every", 1),
            ("keep", 1),
            ("log_every", 1),
            ("check_every", 0),
            ("collapse_std", 0),
            ("collapse_rank", 0),
            ("collapse_checks", 1),
            ("reader_threads", 1),
        ):
            value = getattr(self, name)
            _require(value >= low, f"runtime.{name} is {value}; it must be at least {low}.")


@dataclass(frozen=True)
class Run:
    """All settings of one training.

    Attributes:
        task: the pretext task.
        encoder: the network that learns it.
        optim: the optimizer and the learning rate.
        train: how long and on which batches.
        runtime: checkpoints, logging, checks and reading.
    """

    task: PretextTask
    encoder: EncoderSpec
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    runtime: Runtime = field(default_factory=Runtime)


def _outside(where: str, name: str, value: float, low: float, high: float) -> str:
    bounds = f"at least {low:g}" + ("" if math.isinf(high) else f" and at most {high:g}")
    return f"{where}.{name} is {value}; it must be {bounds}."
