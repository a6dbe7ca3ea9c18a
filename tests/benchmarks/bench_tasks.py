"""A training step of every image task against a plain supervised step of the same encoder; samples/s on one CPU thread.

    python tests/benchmarks/bench_tasks.py [TASK ...] [--repetitions 7] [--precision bf16]

Ours is `TrainState.step` on a batch of bytes as the reader delivers it: make_batch, forward, loss, backward, update.
The peer is plain torch: the same encoder with a linear layer of 1000 answers, cross-entropy, backward, update by the
same optimizer; same precision, channels_last. It gets as many views of the same size, as ready float tensors, so it
does not pay for crops and colours. Their number is counted at the first layer of every encoder in the task's model
during a step: four rotations are four views, a MAE's quarter of the tokens is a quarter of the tokens, and the two
halves of a split brain are two encoders of half the width. Views that an encoder sees without gradient (MoCo's keys,
the teachers of the bags of words) are a forward pass without gradient for the peer, too. In image_position a token
attends to a quarter of the others and the peer's to all, so the task can be faster than its peer.

Decoders are excluded: those of pixels, patches and colours are replaced by one learnt picture plus the mean of the
decoder's input, so that the task's loss on all pixels still counts, and so do its metrics. Heads, projections,
context networks and embeddings are not decoders and count, at the tasks' default sizes except for two: bag_of_words
has 2048 words, the paper's number for small pictures (with ImageNet's 20,000 the ratio is 0.64 in bf16, where finding
the nearest word in float32 is a quarter of the step, and 0.75 in fp32), and amdim embeds in 512 numbers, as many as
the encoder's last stage has, which is so in the paper, too (with the paper's 1536, for an encoder three times as
wide: 0.64 in bf16, 0.51 in fp32). Artefacts (orders, words, the prior) are fitted to noise, visual words to one place
each, since the words do not change the cost of a step.

Both sides take turns in one process with one thread and are timed in CPU seconds; the ratio is of medians.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_train_step import has_bf16
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_core import artefact
from ssl_core.data.reader import Batch
from ssl_core.data.shuffle import Cursor
from ssl_core.folder import CONFIG
from ssl_core.nn.decoders import PatchDecoder, PixelDecoder
from ssl_core.nn.dense import DenseHead
from ssl_core.nn.encoders import Encoder, EncoderSpec
from ssl_core.nn.encoders.resnet import ResNet
from ssl_core.nn.encoders.vit import ViT
from ssl_core.task import PretextTask
from ssl_core.tasks import TASKS
from ssl_core.train.memory import keep_freed_memory
from ssl_core.train.optim import make_optimizer
from ssl_core.train.ranks import Ranks
from ssl_core.train.run import Optim, Run, Train
from ssl_core.train.train_state import TrainState
from ssl_core.types import Field

TARGET, WARM, CLASSES, LR = 0.7, 2, 1000, 0.03
DECODERS = (PixelDecoder, PatchDecoder, DenseHead)
RESNET = EncoderSpec("resnet18")


@dataclass(frozen=True)
class Case:
    """A task's fields that are not its defaults, its encoder, and the samples of a batch."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    encoder: EncoderSpec = RESNET
    batch: int = 32


VIEW = {"canvas": 128, "size": 96}
CASES: Mapping[str, Case] = {
    "rotation": Case({"canvas": 96}),
    "relative_transformation": Case(VIEW),
    "context_prediction": Case(batch=16),
    "image_position": Case(
        {"canvas": 128, "cells": 12, "patch": 8}, EncoderSpec("vit_tiny", patch=8, positions="none")
    ),
    "jigsaw": Case(),
    "colorization": Case({"canvas": 96}),
    "split_brain": Case({"canvas": 96, "stride": 8}),
    "variational_autoencoder": Case({"canvas": 96}),
    "denoising_autoencoder": Case({"canvas": 96}),
    "context_encoder": Case({"canvas": 96}),
    "masked_autoencoder": Case({**VIEW, "patch": 8}, EncoderSpec("vit_tiny", patch=8, positions="sincos")),
    "bag_of_words": Case({**VIEW, "words": 2048, "vectors": 1}),
    "spatial_bag_of_words": Case({**VIEW, "vectors": 1}),
    "online_bag_of_words": Case(),
    "simclr": Case(VIEW),
    "moco": Case(VIEW),
    "amdim": Case({**VIEW, "out": 512}),
    "cpc_image": Case(batch=8),
    "exemplar_cnn": Case(VIEW),
    "exemplar_triplet": Case(VIEW, batch=16),
    "supervised": Case(VIEW),
}


def fitted(task: Any, spec: EncoderSpec, folder: Path) -> PretextTask:
    """The task with artefacts fitted to noise; where it reads a saved model, that of an untrained network."""
    (folder / CONFIG).write_text(json.dumps({"encoder": asdict(spec)}))
    artefact.search_in(folder)
    read = replace(task, **dict.fromkeys(artefact.saved_models(task), str(folder)))
    batches = (random_batch(task, 32).raw for _ in itertools.count())
    rng = torch.Generator().manual_seed(0)
    made = {name: artefact.store(folder, fit(read, batches, rng)) for name, fit in artefact.fit_functions(task).items()}
    ready: PretextTask = replace(task, **made)
    return ready


def random_batch(task: PretextTask, n: int) -> Batch:
    """Noise in the form in which the reader delivers pictures; numbers for all other fields."""
    raw = {}
    for name, wanted in task.sample.items():
        if wanted.modality == "image":
            channels, rows, columns = wanted.shape
            raw[name] = torch.randint(256, (n, rows, columns, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
        else:
            raw[name] = torch.arange(n)
    return Batch(raw, np.arange(n), Cursor())


class SmallestDecoder(nn.Module):
    """In place of a decoder: a learnt picture, with the mean of the decoder's input added to each pixel."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.picture = nn.Parameter(torch.zeros_like(like[:1], dtype=torch.float32))

    def forward(self, x: Tensor, *places: Tensor) -> Tensor:
        mean = x.mean(tuple(range(1, x.ndim)))
        return self.picture + mean.view(-1, *[1] * (self.picture.ndim - 1))


def exclude_decoders(train_state: TrainState, batch: Batch) -> list[str]:
    """Replaces every decoder of the model by the smallest one; returns their names."""
    names = [name for name, module in train_state.model.named_modules() if isinstance(module, DECODERS)]
    shapes: dict[str, Tensor] = {}
    for name in names:
        module = train_state.model.get_submodule(name)
        module.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: out.detach()}))
    train_state.step(batch, LR)
    for name in names:
        owner, _, attribute = name.rpartition(".")
        setattr(train_state.model.get_submodule(owner), attribute, SmallestDecoder(shapes[name]))
    train_state.optimizer = make_optimizer(train_state.run.optim, train_state.model)
    return names


class Seen(NamedTuple):
    """What an encoder saw in one pass."""

    encoder: Encoder
    x: Tensor
    """[m, c, h, w]."""
    learns: bool
    sets: int = 0
    tokens: int = 0
    """A ViT's blocks got `sets` sets of so many tokens."""


def watch(train_state: TrainState, batch: Batch) -> list[Seen]:
    """All passes of all encoders in one step."""
    seen: list[Seen] = []
    hooks = []
    for module in train_state.model.modules():
        if isinstance(module, ResNet | ViT):
            first = module.stem if isinstance(module, ResNet) else module.patches

            def note(_: nn.Module, inputs: tuple[Tensor, ...], encoder: Encoder = module) -> None:
                x = inputs[0].detach().clone(memory_format=torch.channels_last)
                seen.append(Seen(encoder, x, torch.is_grad_enabled()))

            hooks.append(first.register_forward_pre_hook(note))
        if isinstance(module, ViT):

            def count(__: nn.Module, inputs: tuple[Tensor, ...], vit: ViT = module) -> None:
                sets, tokens, _ = inputs[0].shape
                seen[-1] = seen[-1]._replace(sets=sets, tokens=tokens - int(vit.cls is not None))

            hooks.append(module.blocks[0].register_forward_pre_hook(count))
    train_state.step(batch, LR)
    for hook in hooks:
        hook.remove()
    return seen


class Peer:
    """The plain step: the encoders that were seen, built anew, with a linear layer on those that learn."""

    def __init__(self, passes: list[Seen], spec: EncoderSpec, optim: Optim, precision: str) -> None:
        self.passes, self.precision = passes, precision
        self.encoders = {seen.encoder: plain(seen, spec) for seen in passes}
        self.heads = {seen.encoder: nn.Linear(seen.encoder.dim, CLASSES) for seen in passes if seen.learns}
        learnt = nn.ModuleList(nn.Sequential(self.encoders[key], head) for key, head in self.heads.items())
        self.optimizer = make_optimizer(optim, learnt)
        self.labels = torch.randint(CLASSES, (max(len(seen.x) for seen in passes),))

    def step(self) -> None:
        """Forward, backward, update."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = [self._loss(seen) if seen.learns else self._forward_only(seen) for seen in self.passes]
        torch.stack([loss for loss in losses if loss is not None]).sum().backward()
        self.optimizer.step()

    def _loss(self, seen: Seen) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.heads[seen.encoder](vectors(self.encoders[seen.encoder], seen))
        return F.cross_entropy(logits.float(), self.labels[: len(logits)])

    @torch.no_grad()
    def _forward_only(self, seen: Seen) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            vectors(self.encoders[seen.encoder], seen)


def plain(seen: Seen, spec: EncoderSpec) -> Encoder:
    """A new encoder of the same width and mode as the one that was seen."""
    shape = Field("image", tuple(seen.x.shape[1:]))
    encoder = spec.build(shape, seen.encoder.dim / spec.build(shape).dim)
    return encoder.to(memory_format=torch.channels_last).train(seen.encoder.training)  # type: ignore[call-overload]


def vectors(encoder: Encoder, seen: Seen) -> Tensor:
    """One vector per view; a ViT gets as many patches, or tokens of a view, as were seen."""
    if not isinstance(encoder, ViT):
        return encoder(seen.x)
    embedded = encoder.tokens(seen.x)
    sets = embedded.view(seen.sets, -1, encoder.dim)[:, : seen.tokens]
    return encoder.encode(sets)[:, 0]


@dataclass(frozen=True)
class Result:
    """Medians over the repetitions."""

    task: str
    views: str
    batch: int
    ours: float
    """CPU seconds of a step."""
    plain: float
    make_batch: float
    decoders: list[str]

    @property
    def ratio(self) -> float:
        """Samples/s of ours against those of the plain step."""
        return self.plain / self.ours

    def row(self) -> str:
        """One line of the table."""
        rates = f"{self.batch / self.plain:8.1f} {self.batch / self.ours:8.1f}"
        without = f"; decoders left out: {', '.join(self.decoders)}" if self.decoders else ""
        return f"{self.task:24}{rates}{self.ratio:8.2f}{self.make_batch / self.ours:12.0%}  {self.views}{without}"


def measure(name: str, repetitions: int, precision: str, folder: Path) -> Result:
    """Both sides of a task in turns."""
    case = CASES[name]
    torch.manual_seed(0)
    task = fitted(TASKS[name](**case.fields), case.encoder, folder)
    optim, train = Optim(lr=LR), Train(steps=1, batch_size=case.batch, precision=precision)  # type: ignore[arg-type]
    train_state = TrainState(Run(task, case.encoder, optim, train), Ranks.join(0, 1, "cpu"))
    batch = random_batch(task, case.batch)
    decoders = exclude_decoders(train_state, batch)
    passes = watch(train_state, batch)
    peer = Peer(passes, case.encoder, optim, precision)
    works: list[Callable[[], Any]] = [
        lambda: train_state.step(batch, LR),
        peer.step,
        lambda: task.make_batch(batch.raw, torch.Generator().manual_seed(0)),
    ]
    for _ in range(WARM):
        for work in works:
            work()
    times = [[cpu_seconds(work) for work in works] for _ in range(repetitions)]
    ours, theirs, making = (statistics.median(column) for column in zip(*times))
    return Result(name, described(passes, case.batch), case.batch, ours, theirs, making, decoders)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Of all threads of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def described(passes: list[Seen], batch: int) -> str:
    """What the encoders see of one sample, such as "2 x 96 px"."""
    return ", ".join(
        f"{len(seen.x) // batch} x {seen.x.shape[-1]} px"
        + (f" ({seen.tokens} tokens)" if seen.tokens else "")
        + ("" if seen.learns else " forward only")
        for seen in passes
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"{', '.join(CASES)}; all, if none is named")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16" if has_bf16() else "fp32")
    arguments = parser.parse_args()
    if unknown := set(arguments.tasks) - set(CASES):
        parser.error(f"no such task: {', '.join(unknown)}")
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"{arguments.precision}, one thread, CPU time; samples/s of training steps without decoders")
    print(f"{'task':24}{'plain':>8} {'task':>8}{'ratio':>8}{'make_batch':>12}  what the encoder sees of a sample")
    slow = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.tasks or CASES:
            result = measure(name, arguments.repetitions, arguments.precision, Path(folder))
            print(result.row(), flush=True)
            if result.ratio < TARGET:
                slow.append(name)
    if slow:
        sys.exit(f"below {TARGET}: {', '.join(slow)}")


if __name__ == "__main__":
    main()
