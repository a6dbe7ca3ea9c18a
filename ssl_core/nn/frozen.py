"""Frozen networks: the teachers of the bag-of-words tasks, saved by an earlier run and not trained further."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_core.folder import CONFIG, WEIGHTS, DamagedError, read_json, read_tensors
from ssl_core.nn.encoders import Encoder, EncoderSpec
from ssl_core.types import Field

_PREFIX = "encoder."


class Frozen(nn.Module):
    """A network in eval mode, without parameters and not in the state dict; it moves between devices with its owner.

    Its weights are stored separately, as an artefact.
    """

    def __init__(self, network: Encoder) -> None:
        super().__init__()
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, FixedNorm(child))
        for module in network.modules():
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in own:
                delattr(module, name)
                module.register_buffer(name, tensor.detach(), persistent=False)
        self.network = network.eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stays in eval mode."""
        return self


class FixedNorm(nn.Module):
    """Computes what a trained batch norm does, but is none, so that train.sync_bn does not convert it."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        self.register_buffer("scale", scale.view(-1, 1, 1))
        self.register_buffer("shift", (norm.bias - norm.running_mean * scale).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale.to(x.dtype)).add_(self.shift.to(x.dtype))


def saved_encoder(folder: Path, field: Field, seed: int) -> tuple[EncoderSpec, Encoder]:
    """The encoder of a saved model, for inputs of that shape; an untrained one where the folder has no weights.

    Raises:
        DamagedError: the folder holds no model, or its encoder takes inputs of another shape.
        ValueError: the model's encoder does not take such inputs.
    """
    spec = EncoderSpec(**read_json(folder / CONFIG)["encoder"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = spec.build(field)
    if (folder / WEIGHTS).exists():
        tensors = read_tensors(folder / WEIGHTS)
        weights = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
        _fill(encoder, weights, folder)
    return spec, encoder


def pack(spec: EncoderSpec, encoder: Encoder) -> dict[str, Tensor]:
    """An encoder as plain tensors: its weights, and the bytes of its spec as JSON."""
    text = json.dumps(asdict(spec), sort_keys=True).encode()
    weights = {_PREFIX + name: tensor for name, tensor in encoder.state_dict().items()}
    return {"spec": torch.tensor(list(text), dtype=torch.uint8), **weights}


def unpack(tensors: Mapping[str, Tensor], field: Field) -> Frozen:
    """The frozen encoder from the tensors of `pack`."""
    spec: dict[str, Any] = json.loads(bytes(tensors["spec"].tolist()))
    encoder = EncoderSpec(**spec).build(field)
    encoder.load_state_dict({n.removeprefix(_PREFIX): t for n, t in tensors.items() if n.startswith(_PREFIX)})
    return Frozen(encoder)


def _fill(encoder: Encoder, weights: Mapping[str, Tensor], folder: Path) -> None:
    own = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in weights.items()}:
        raise DamagedError(
            f"{folder} holds an encoder that does not take colour images of this task's size, so it cannot be a "
            "teacher; name a model of another task."
        )
    encoder.load_state_dict(dict(weights))
