"""The train state: all that an optimizer step changes and a checkpoint stores; and the step itself.

Randomness is a pure function of (seed, step, micro-batch, rank), so that no generator's state needs saving and a
resumed run repeats the uninterrupted one bit for bit at the same world size.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_core.data.reader import Batch, Cursor
from ssl_core.errors import InputError
from ssl_core.train.ema import EMA
from ssl_core.train.meter import Meter
from ssl_core.train.optim import make_optimizer, set_lr
from ssl_core.train.ranks import Checkpoint, Ranks
from ssl_core.train.run import Run
from ssl_core.types import Raw

_NEW = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if _NEW else "broadcast_buffers"
"""DDP's option that copies rank 0's buffers to all ranks before every forward pass; batch norm does not need it."""


class TrainState:
    """A run's model, optimizer, EMA and place in the data, on one rank."""

    def __init__(self, run: Run, ranks: Ranks) -> None:
        _check_fit(run, ranks)
        self.run, self.ranks = run, ranks
        torch.manual_seed(run.train.seed)
        self.model = run.task.build(run.encoder.build)
        if run.train.sync_bn:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        layout = torch.channels_last if run.train.channels_last else torch.preserve_format
        self.model = self.model.to(ranks.device, memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(run.optim, self.model)
        self.ema = EMA(self.model, run.train.ema) if run.train.ema else None
        self.meter = Meter()
        self.step_count = 0
        self.cursor = Cursor()
        self.ids_digest = ""
        self.forward: nn.Module = self.model

    def wrap(self) -> None:
        """Compiles and distributes the forward pass; after `restore`, so that all ranks start from the same weights."""
        forward: Any = torch.compile(self.model) if self.run.train.compile else self.model
        if self.ranks.world > 1:
            # find_unused_parameters also stops DDP from reordering its buckets after the first step. A resumed run
            # would start from the first order, and with 3 ranks or more sum its gradients in another order.
            devices = [self.ranks.device] if self.ranks.device.type == "cuda" else None
            options: Any = {"device_ids": devices, "find_unused_parameters": True, _SYNC_BUFFERS: False}
            forward = DistributedDataParallel(forward, **options)
        self.forward = forward

    def step(self, batch: Batch, lr: float) -> None:
        """Forward, backward and update on this rank's part of a global batch."""
        self.forward.train()
        set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        pieces = split(batch.raw, self.run.train.accumulate)
        for micro, raw in enumerate(pieces):
            with self._synced_only_if(micro == len(pieces) - 1):
                self._backward(raw, micro, len(pieces))
        self._update()
        self.step_count += 1
        self.cursor = batch.cursor
        self.ids_digest = hashlib.sha256(self.ids_digest.encode() + batch.ids.tobytes()).hexdigest()

    def _backward(self, raw: Raw, micro: int, pieces: int) -> None:
        task = self.run.task
        inputs, targets = task.make_batch(raw, self._randomness(micro))
        with self.autocast():
            outputs = self.forward(**self._laid_out(inputs))
        outputs = _float32(outputs)
        losses, metrics = task.loss(outputs, targets)
        (losses.mean() / pieces).backward()  # type: ignore[no-untyped-call]
        self.meter.add({"loss": losses, **metrics})

    def _update(self) -> None:
        self.meter.add({"grad_norm": self._clip()})
        self.optimizer.step()
        with torch.no_grad():
            self.model.after_step()
        if self.ema:
            self.ema.update(self.model, self.step_count)

    def _clip(self) -> Tensor:
        """The norm of the whole gradient before clipping; without clipping no gradient is written."""
        if self.run.optim.clip:
            return nn.utils.clip_grad_norm_(self.model.parameters(), self.run.optim.clip)
        return nn.utils.get_total_norm([weight.grad for weight in self.model.parameters() if weight.grad is not None])

    def _randomness(self, micro: int) -> torch.Generator:
        """Seeds dropout and the like, and returns the generator for make_batch; each has a stream of its own."""
        place = (self.run.train.seed, self.step_count, micro, self.ranks.rank)
        torch.manual_seed(_seed("model", *place))
        return torch.Generator(self.ranks.device).manual_seed(_seed("batch", *place))

    def _synced_only_if(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Ranks exchange gradients once per optimizer step, at the last micro-batch."""
        if last or not isinstance(self.forward, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.forward.no_sync()

    def _laid_out(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.run.train.channels_last:
            return dict(inputs)
        return {
            name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
            for name, value in inputs.items()
        }

    def autocast(self) -> torch.autocast:
        """Autocast to the run's precision, for a forward pass."""
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.run.train.precision == "bf16")

    def weights(self) -> dict[str, Tensor]:
        """What is evaluated and saved: the EMA of the weights if the run keeps one, else the weights."""
        return self.ema.tensors if self.ema else self.model.state_dict()

    def capture(self) -> Checkpoint:
        """The checkpoint from which `restore` continues; all ranks call it, rank 0 stores the result."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.ema:
            tensors |= {f"ema/{name}": tensor for name, tensor in self.ema.tensors.items()}
        numbers: dict[str, Any] = {}
        for name, weight in self.model.named_parameters():
            for key, value in self.optimizer.state.get(weight, {}).items():
                (tensors if isinstance(value, Tensor) else numbers)[f"optim/{name}/{key}"] = value
        tensors["meter"] = self.ranks.sum(self.meter.packed())
        meta = {
            "step": self.step_count,
            "cursor": {"epoch": self.cursor.epoch, "step": self.cursor.step},
            "ids_digests": self.ranks.gather(self.ids_digest),
            "meter": list(self.meter.sums),
            "numbers": numbers,
        }
        return tensors, meta

    def restore(self, state: Checkpoint) -> None:
        """Continues from a checkpoint of the same run.

        Raises:
            InputError: the checkpoint's tensors are not this run's.
        """
        tensors, meta = state
        _copy(self.model.state_dict(), tensors, "model/")
        if self.ema:
            _copy(self.ema.tensors, tensors, "ema/")
        self._restore_optimizer({**tensors, **meta["numbers"]})
        mine = tensors["meter"] if self.ranks.rank == 0 else torch.zeros_like(tensors["meter"])
        self.meter.unpack(meta["meter"], mine, self.ranks.device)
        self.step_count = meta["step"]
        self.cursor = Cursor(**meta["cursor"])
        digests = meta["ids_digests"]
        self.ids_digest = digests[self.ranks.rank] if len(digests) == self.ranks.world else ""

    def _restore_optimizer(self, saved: Mapping[str, Any]) -> None:
        for name, weight in self.model.named_parameters():
            prefix = f"optim/{name}/"
            entries = {key[len(prefix) :]: value for key, value in saved.items() if key.startswith(prefix)}
            if entries:
                self.optimizer.state[weight] = {key: _like(weight, value) for key, value in entries.items()}


def split(raw: Raw, pieces: int) -> list[dict[str, Tensor]]:
    """A batch cut into equal micro-batches, in order."""
    chunks = {name: value.chunk(pieces) for name, value in raw.items()}
    return [{name: parts[i] for name, parts in chunks.items()} for i in range(pieces)]


def _check_fit(run: Run, ranks: Ranks) -> None:
    parts = ranks.world * run.train.accumulate
    if run.train.batch_size % parts:
        raise InputError(
            f"train.batch_size {run.train.batch_size} cannot be divided equally among {ranks.world} workers with "
            f"train.accumulate {run.train.accumulate}; make it a multiple of {parts}."
        )
    if run.train.sync_bn and ranks.device.type != "cuda":
        raise InputError(
            "train.sync_bn works on GPUs only, and this run computes on the "
            f"{ranks.device.type.upper()}; set train.sync_bn to false, or encoder.norm to group."
        )


def _seed(stream: str, *place: int) -> int:
    text = ",".join(map(str, (stream, *place)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def _float32(outputs: Any) -> Any:
    """bfloat16 outputs as float32: losses are always computed in float32."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype is torch.bfloat16 else outputs
    if isinstance(outputs, dict):
        return {key: _float32(value) for key, value in outputs.items()}
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return type(outputs)(*map(_float32, outputs))
    if isinstance(outputs, list | tuple):
        return type(outputs)(map(_float32, outputs))
    return outputs


def _like(weight: Tensor, value: Any) -> Any:
    """Optimizer state on the weight's device, in its memory format where it has its shape."""
    if not isinstance(value, Tensor):
        return value
    if value.shape == weight.shape:
        return torch.empty_like(weight, dtype=value.dtype).copy_(value)
    return value.to(weight.device)


def _copy(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], prefix: str) -> None:
    saved = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    strange = sorted(name for name in own.keys() | saved.keys() if _shape(own, name) != _shape(saved, name))
    if strange:
        raise InputError(
            f"The checkpoint is of another run: {', '.join(strange[:3])} ({len(strange)} tensors) differ from this "
            "run's; give this run another name, or delete the checkpoints."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
